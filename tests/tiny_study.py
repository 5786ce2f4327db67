"""`python tests/tiny_study.py STUDY …` is `python -m experiments.run` with studies for the tests.

`tiny` has three runs of seconds, one of which fails; `twelve` has twelve, for a cluster.
"""

from experiments import run
from experiments.studies import Run

FLAGS = "--num-envs 2 --num-workers 1 --num-steps 8 --minibatch-size 16 --hidden-sizes 8 "
FLAGS += "--eval-every 0 --episodes 2 --teacher-episodes 1 --save-every 100 --torch-threads 1"


class TinyRun(Run):
    def flags(self, teacher=None):
        return super().flags(teacher) + FLAGS.split()


def make_runs(study, weights, steps):
    options = [{"distill-lambda": weight, "total-timesteps": steps} for weight in weights]
    return [TinyRun(study, "Hopper-v4", "ppd", 100, "smaller", 0.0, each) for each in options]


run.STUDIES["tiny"] = lambda: make_runs("tiny", [1, -1, 2], 3000)  # λ = −1 is refused
run.STUDIES["twelve"] = lambda: make_runs("twelve", range(12), 6000)
run.STUDIES["orphan"] = lambda: [TinyRun("orphan", "Hopper-v4", "ppd", 300, "smaller")]

if __name__ == "__main__":
    run.main()
