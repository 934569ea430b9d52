"""A trained model in the formats of other programs: GGUF and ONNX, verified before it gets its name."""
