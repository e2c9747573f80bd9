"""Read PSID downloads: carts of the Data Center, and packaged family and individual files."""
