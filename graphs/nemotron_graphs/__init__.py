"""The ONNX dialect of Nemotron models: ops, passes, targets."""
