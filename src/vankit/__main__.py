"""`python -m vankit`, which torchrun needs."""

from vankit.cli import main

if __name__ == "__main__":
    main()
