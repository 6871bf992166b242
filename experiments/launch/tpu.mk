# Cloud TPU VMs; tpu.sh beside this file does the work, README.md has the whole way.
TPU_SH := $(dir $(lastword $(MAKEFILE_LIST)))tpu.sh
TPU_TARGETS := tpu-create tpu-status tpu-setup tpu-push tpu-train tpu-run tpu-logs tpu-ssh tpu-pull \
  tpu-babysit tpu-delete
TPU_VARIABLES := TPU_NAME ZONE PROJECT ACCEL RUNTIME SPOT BUCKET RUN_ID WORKER CMD

.PHONY: $(TPU_TARGETS)

tpu-create: ## request a TPU VM, wait until it is there (TPU_NAME ZONE PROJECT ACCEL)
tpu-status: ## what there is of it, and how its run stands
tpu-setup: ## send the code, install Python and packages
tpu-push: ## send the code alone: what git tracks, with its changes
tpu-train: ## train EXP on it in the background (BUCKET RUN_ID)
tpu-run: ## CMD on every worker, or on WORKER
tpu-logs: ## follow the log of WORKER (0)
tpu-ssh: ## a shell on WORKER (0)
tpu-pull: ## fetch the run folder from BUCKET into RUN_DIR
tpu-babysit: ## create, set up, train; again after every preemption, until RUN_ID has ended
tpu-delete: ## delete the TPU VM, which costs until then

# Taken as they are written: make would read a dollar sign in them.
$(foreach v,$(TPU_VARIABLES),$(if $(filter command environment,$(firstword $(origin $v))),\
  $(eval override $v := $$(value $v))))
export $(TPU_VARIABLES) EXP SEED ARGS RUN_DIR

$(TPU_TARGETS):
	@bash $(TPU_SH) $(@:tpu-%=%)

# Lines of `make help`.
TPU_HELP := \
  'TPU_NAME ZONE PROJECT ACCEL=v6e-8 BUCKET RUN_ID   of the tpu-* targets; DRY_RUN=1 prints what they would do' \
  'SPOT=1 RUNTIME WORKER CMD        on demand: SPOT=0; other runtime version; one worker; a command'
