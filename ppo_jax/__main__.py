import sys

from ppo_jax.main import main

if __name__ == "__main__":
    sys.exit(main())
