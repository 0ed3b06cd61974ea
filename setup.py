"Packaging that reads settings.ini, so that every version and requirement is written once."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
lines = lambda key: [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], license="Apache-2.0",
    author=cfg["author"], url=cfg["git_url"], keywords=cfg["keywords"], python_requires=f">={cfg['min_python']}",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["combcomp", "combcomp.*"]),
    package_data={"combcomp": ["*.mplstyle", "weights/*"], "combcomp.data": ["*.csv"]},
    install_requires=lines("requirements"), entry_points=dict(console_scripts=lines("console_scripts")),
    extras_require={key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")},
)
