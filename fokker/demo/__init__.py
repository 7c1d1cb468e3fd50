"""The demonstration: `fokker demo`, or `python -m fokker.demo`.

One stage a file: `training`, `sampling` (guidance, solvers), `restoring`, `classifying`; `figures`, `numbers` and `report`
write down what they found, and `main` runs all of it. Everything is done with what the package offers to its users.
"""
