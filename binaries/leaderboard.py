"""Compares all methods for classes under five kinds of noise on three data sets; writes one page.

python -m binaries.leaderboard --data_dir=DIR --workers=2
python -m binaries.leaderboard --datasets=digits --entries=standard,prl_l --seeds=0
python -m binaries.leaderboard --cost
"""

from typing import Any

from absl import flags

from binaries import door
from prl_keras.experiments.leaderboard.entries import DATA, UNSEEN, entries
from prl_keras.experiments.programs import leaderboard

flags.DEFINE_string("output_dir", "results/leaderboard", "Gets runs/ with a folder per run, and the page.")
flags.DEFINE_list("entries", None, f"Lines of the board; all if left out. {'; '.join(entries())}.")
flags.DEFINE_list("datasets", None, f"Of {', '.join(DATA)}, all these if left out; or {', '.join(UNSEEN)}.")
flags.DEFINE_list("seeds", None, "Seeds, such as 0,1,2; 0 to 4 if left out.")
flags.DEFINE_integer("workers", 1, "Processes on this machine.", lower_bound=1)
flags.DEFINE_string("shard", "0/1", "i/n: of every n runs do the i-th, i from 0; for n machines.")
flags.DEFINE_bool("dry_run", False, "List the runs that are missing, and do nothing else.")
flags.DEFINE_bool("report", False, "Run nothing: write the page from the result files.")
flags.DEFINE_bool("cost", False, "Run nothing: time the steps on a quiet machine, and write the page.")
door.data_flags()


def program(**options: Any) -> int:
    return int(leaderboard.leaderboard(**options))


if __name__ == "__main__":
    door.run(program, "--datasets=digits")
