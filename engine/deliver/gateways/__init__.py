"""The ways out, one file each, behind the contract of `engine.deliver.contract`."""
