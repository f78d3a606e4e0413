"""The examples of python/README.md, each in an interpreter of its own, as a reader runs them.

Reads {readme} on stdin. Prints what was checked.
"""

import re
import subprocess
import sys

from checks import check, done, given

with open(given["readme"]) as file:
    examples = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
# The others want a model, a cluster or a program that is not here.
examples = [example for example in examples if '"demo"' in example]
check("examples", len(examples) >= 3, True)
for number, example in enumerate(examples, 1):
    run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    check(f"example {number}: {run.stderr}", run.returncode, 0)
done("README")
