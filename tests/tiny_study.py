"""`python tests/tiny_study.py STUDY …` is `python -m experiments.run` with studies for the tests.

They run `tests/stand_in.py`: `tiny` and `brief` three times, of which one fails; `twelve` twelve
times. `orphan` has no teacher.
"""

from pathlib import Path

from experiments import run
from experiments.studies import Run


class TinyRun(Run):
    script = [str(Path(__file__).with_name("stand_in.py"))]


def make_runs(study: str, weights, steps: int) -> list[Run]:
    options = [{"distill-lambda": weight, "total-timesteps": steps} for weight in weights]
    return [TinyRun(study, "Hopper-v4", "ppd", 100, "smaller", 0.0, each) for each in options]


run.STUDIES["tiny"] = lambda: make_runs("tiny", [1, -1, 2], 300)  # λ = −1 is refused
run.STUDIES["brief"] = lambda: make_runs("brief", [1, -1, 2], 20)
run.STUDIES["twelve"] = lambda: make_runs("twelve", range(12), 800)
run.STUDIES["orphan"] = lambda: [TinyRun("orphan", "Hopper-v4", "ppd", 300, "smaller")]

if __name__ == "__main__":
    run.main()
