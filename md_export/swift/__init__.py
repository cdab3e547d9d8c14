"""What ``--layout swift`` adds beside the packages, and the check that Apple's Swift package can read all of it."""
