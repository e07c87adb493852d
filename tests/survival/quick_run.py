"""`hyperbench` as a process of its own, but for the process that asks PyTorch what is here: that answer is made up."""

from __future__ import annotations

from made_runs import facts

from hyperbench import cli
from hyperbench.measure import session

if __name__ == "__main__":
    session.ask_probe = facts
    cli.main()
