"""Packaging: the top-level folders become sub-packages of `eomt`, so no generic name reaches site-packages."""

from setuptools import find_packages, setup

FOLDERS = ["configuration", "image_processing", "modeling_eomt", "training"]

package_dir = {"eomt": "eomt"}
packages = find_packages(include=["eomt", "eomt.*"])
for folder in FOLDERS:
    package_dir[f"eomt.{folder}"] = folder
    packages += [f"eomt.{folder}", *(f"eomt.{folder}.{name}" for name in find_packages(folder))]

package_data = {
    "eomt.configuration": ["data/*.json", "data/*.csv"],
    "eomt.training": ["configs/*"],
}
setup(packages=packages, package_dir=package_dir, package_data=package_data)
