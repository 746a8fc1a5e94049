"""The smallest Hydra application that has a configuration file."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path=".", config_name="minimal_hydra")
def main(config: DictConfig) -> None:
    print(config)


if __name__ == "__main__":
    main()
