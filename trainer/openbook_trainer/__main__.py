"""`python -m openbook_trainer --config FILE [--set a.b=c]`, alone or under torchrun."""

from openbook_trainer.app import main

if __name__ == "__main__":
    raise SystemExit(main())
