/* The backends of a program built with CUDA. */
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cuda/cuda.h"
#include "worker/backend/ref/ref.h"

const struct backend_ops *const backend_list[] = { &cpu_ops, &cuda_ops, &ref_ops, NULL };
const char backend_list_note[] = "";
