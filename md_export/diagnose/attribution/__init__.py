"""Attribution: find the torch module that an artifact computes wrongly."""
