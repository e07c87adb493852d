"""`hyperbench` as a process of its own, but for the process that asks PyTorch what is here: that answer is made up."""

from __future__ import annotations

from hyperbench import cli
from hyperbench.measure.runner import session
from tests.helpers.made_runs import facts

if __name__ == "__main__":
    session.ask_probe = facts
    cli.main()
