"""``python -m nap_stream``, where the console script is not on the path."""

from nap_stream.cli import main

if __name__ == "__main__":
    main()
