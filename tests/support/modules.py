"""Weights of torch modules as arrays, and what serving derives from them."""

from models.networks import affine_layers, convolutions


def weights_of(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def affine_of(module, last):
    return affine_layers(module.network, weights_of(module), last)


def convolutions_of(module):
    return convolutions(module.network, weights_of(module))
