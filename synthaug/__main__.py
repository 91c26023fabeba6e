"""`python -m synthaug` is the command `synthaug`."""

from synthaug._cli import main

if __name__ == "__main__":
    main()
