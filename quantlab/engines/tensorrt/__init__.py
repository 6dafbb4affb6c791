"""TensorRT 10, TensorRT 11 and TensorRT-RTX: one package that asks the module it is given what it has."""
