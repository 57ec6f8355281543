"""The paper's claims, checked on a world that is trained from scratch; see `train.reproduce.run`."""
