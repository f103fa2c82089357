/* The table of one set of kernels; compiled once for each (codegen/host_kernels.py). */
#include "tinyfleet/kernels.h"

#define TF_TABLE_JOIN(set) tf_kernels_##set
#define TF_TABLE_OF(set) TF_TABLE_JOIN(set)
#define TF_POINTER(name) tf_##name,

extern const tf_kernel_table TF_TABLE_OF(TF_KERNEL_SET);
const tf_kernel_table TF_TABLE_OF(TF_KERNEL_SET) = {TF_EACH_KERNEL(TF_POINTER)};
