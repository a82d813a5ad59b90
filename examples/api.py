"""A study from a Python program, on this machine."""

import nhop

result = nhop.run_study(
    {"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[300, 4], [200, 2]], "data_instances": 1000},
    show=True,
)
best = result.study.best
print(f"trial {best.number} is the best: loss {best.loss:.6g} with {dict(best.parameters)}")
print(f"{len(result.trials)} trials, results in {result.directory}")
