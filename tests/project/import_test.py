"""What an import costs: the library is TensorFlow, Keras and NumPy, nothing else."""

import pytest
from processes import python
from project import ROOT

HEAVY = ("tensorflow_datasets", "keras_tuner", "sklearn", "matplotlib", "pandas", "scipy")


def run(code):
    return python("-c", code).stdout.strip().splitlines()


def test_importing_the_library_imports_no_heavy_package():
    """Beyond what Keras brings: `import keras` takes scikit-learn and matplotlib along where installed."""
    shows = f"print([name for name in {HEAVY} if name in sys.modules])"
    without, with_library = run(f"import sys, tensorflow, keras; {shows}; import prl_keras; {shows}")[-2:]
    assert with_library == without
    assert "tensorflow_datasets" not in with_library and "keras_tuner" not in with_library


def test_the_library_works_where_no_heavy_package_is_installed():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import prl_keras as prl"
    assert run(f"{blocked}; print(prl.Trim(0.5)([2.0, 1.0]).numpy().tolist())")[-1] == "[0.0, 2.0]"


def test_the_library_leaves_the_backend_of_matplotlib_alone():
    """In a notebook `matplotlib.use` would end its own plots. Programs may choose one."""
    files = [path for path in (ROOT / "prl_keras").rglob("*.py") if "experiments" not in path.parts]
    texts = {path: path.read_text() for path in files}
    assert any("import matplotlib" in text for text in texts.values())
    assert not [path for path, text in texts.items() if "matplotlib.use" in text or "pyplot as" in text]


@pytest.mark.fault(39)
def test_another_backend_is_refused_and_the_remedy_is_named():
    sets = "import keras; keras.config.backend = keras.backend.backend = lambda: 'jax'; "
    message = python("-c", f"{sets}import prl_keras", check=False).stderr.strip().splitlines()[-1]
    assert message.startswith(
        "ImportError: prl_keras needs Keras's TensorFlow backend; the backend is 'jax'."
    )
    assert "KERAS_BACKEND=tensorflow" in message
