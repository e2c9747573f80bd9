"""What pyproject.toml cannot say: conf/ and launch/ become folders of the package where it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["laborllm_dist*"]), "laborllm_dist.conf", "laborllm_dist.launch"],
    package_dir={"laborllm_dist.conf": "conf", "laborllm_dist.launch": "launch"},
    package_data={
        "laborllm_dist": ["py.typed"],
        "laborllm_dist.careers": ["tables/*"],
        "laborllm_dist.conf": ["**/*.yaml"],
        "laborllm_dist.launch": ["*.sbatch"],
        "laborllm_dist.report": ["templates/*"],
    },
)
