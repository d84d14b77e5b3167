"""The files of a model beside its float one: transport form and int8, made in a child process, kept where held-out frames say so.

It needs the `train` extra (onnx), never Ultralytics or torch.
"""
