"""The training protocol of each data set: the paper's table 4 and section 6, and a scale for two cores.

paper   the paper's protocol on all images, for an accelerator
cpu     the same protocol at a size for two cores: features of fewer images and a smaller network
"""

import dataclasses
import types
from typing import Any

SCALES = ("paper", "cpu")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the runs of one data set are trained, with any method. The optimizer is Adam, beta_1 0.9 (table 4).

    Attributes:
        batch_size, learning_rate: From table 4; the learning rate is constant.
        network: A name in `NETWORKS`.
        epochs: Passes over the training data.
        ramp_share: Share of the epochs over which the dropped fraction rises from 0 to epsilon; 10 of
            50 epochs in Han et al. 2018.
        pairflip_ramp_share: The same for pairflip corruption; 15 of 50 on CIFAR-100.
        seeds: Number of seeds.
        train_size, test_size: Number of examples used; None for all.
        recompute: The methods that compute the kept examples a second time, so that batch norm sees them
            alone. The published code does so for PRL(L) and Co-PRL(L) only; with batch norm it matters
            (results/published).
    """

    batch_size: int
    learning_rate: float
    network: str
    epochs: int
    ramp_share: float
    pairflip_ramp_share: float
    seeds: int
    train_size: int | None = None
    test_size: int | None = None
    recompute: tuple[str, ...] = ()

    def ramp_epochs(self, corruption: str) -> int:
        """Epochs over which the dropped fraction rises from 0 to epsilon."""
        share = self.pairflip_ramp_share if corruption == "pairflip" else self.ramp_share
        return round(share * self.epochs)


_CIFAR10 = Protocol(128, 0.001, "cnn9", 50, 0.2, 0.2, seeds=3, recompute=("prl_l", "co_prl_l"))
_CIFAR100 = dataclasses.replace(_CIFAR10, pairflip_ramp_share=0.3)
_CPU_FEATURES: dict[str, Any] = {"network": "mlp", "recompute": ()}  # no batch norm
_CELEBA = Protocol(512, 0.0003, "mlp", 50, 0.0, 0.0, seeds=5)
_CPU_IMAGES: dict[str, Any] = {
    "network": "strided_cnn",
    "recompute": (),
    "epochs": 16,
    "seeds": 2,
    "train_size": 10_000,
    "test_size": 5_000,
}

#: (data set, scale) -> `Protocol`.
PROTOCOLS = types.MappingProxyType(
    {
        ("cifar10", "paper"): _CIFAR10,
        ("cifar10", "cpu"): dataclasses.replace(_CIFAR10, **_CPU_IMAGES),
        ("cifar100", "paper"): _CIFAR100,
        ("cifar100", "cpu"): dataclasses.replace(_CIFAR100, **_CPU_IMAGES),
        ("cifar10_features", "cpu"): dataclasses.replace(_CIFAR10, **_CPU_FEATURES),
        ("cifar100_features", "cpu"): dataclasses.replace(_CIFAR100, **_CPU_FEATURES),
        ("celeb_a", "paper"): _CELEBA,
        ("celeb_a", "cpu"): dataclasses.replace(_CELEBA, epochs=40),
        ("digits", "cpu"): Protocol(128, 0.001, "auto", 30, 0.2, 0.2, seeds=3),  # not in the paper
    }
)

#: (data set, scale) -> the data set that takes its place in the tables of accuracy. On images, a network that
#: two cores can train does not memorize wrong labels: plain training is then as good as any method.
STAND_INS = types.MappingProxyType(
    {("cifar10", "cpu"): "cifar10_features", ("cifar100", "cpu"): "cifar100_features"}
)
