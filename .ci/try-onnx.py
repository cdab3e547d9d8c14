"""The commands and the Python API with the extra onnx alone."""

import subprocess

import md_export

checkpoint = md_export.nano_checkpoint()
commands = (
    ("inspect", str(checkpoint)),
    ("onnx", str(checkpoint), "--int8", "-o", "server"),
    ("verify", "server"),
    ("generate", "a cat", "--artifacts", "server", "-o", "cat.png"),
)
for command in commands:
    subprocess.run(["md-export", *command], check=True)
refused = subprocess.run(["md-export", "coreml", "-o", "ios"], capture_output=True, text=True, check=False)
assert refused.returncode == 1 and "pip install 'md-export[coreml]'" in refused.stderr, refused.stderr

export = md_export.export("onnx-fp16", checkpoint, "out")
print(export)
result = md_export.verify(export)
print(result)
assert result.passed and result._repr_html_().startswith("<table>")
assert md_export.audit(export, checkpoint).passed
runner = export.runner("unet")
print(runner)
(outputs,) = [runner.predict({spec.name: spec.zeros() for spec in runner.inputs})]
assert [value.shape for value in outputs.values()] == [spec.shape for spec in runner.outputs]
assert md_export.generate("a cat", artifacts=export).size == (64, 64)
