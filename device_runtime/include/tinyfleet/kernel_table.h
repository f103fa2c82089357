/* Sets of kernels for one machine: the portable twins, and those for its vector units. All compute
 * the same bits. Included by kernels.h where there are several.
 */
#ifndef TINYFLEET_KERNEL_TABLE_H
#define TINYFLEET_KERNEL_TABLE_H

/* clang-format off */
#define TF_EACH_KERNEL(member) \
    member(convolution_forward) member(depthwise_forward) member(add_forward) \
    member(pool_forward) member(max_pool_forward) member(average_pool_forward) \
    member(concat_forward) member(keep_channels) member(requantize_forward) member(lookup_forward) \
    member(head_forward) \
    member(expand_forward) member(expand_input_gradient) member(product_forward) \
    member(product_input_gradient) member(product_reduced_gradient) \
    member(scaling_forward) member(scaling_input_gradient) \
    member(gru_forward) member(gru_input_gradient) member(lstm_forward) member(lstm_input_gradient) \
    member(layer_normalization_forward) member(layer_normalization_input_gradient) \
    member(gather_forward) member(gather_input_gradient) \
    member(transpose_forward) member(transpose_input_gradient) \
    member(rearrange_forward) member(cross_entropy) member(binary_cross_entropy) \
    member(mean_squared_error) member(coded_squared_error) member(error_mask) member(error_sum) member(error_scale) \
    member(rearrange_input_gradient) \
    member(lookup_input_gradient) member(pool_input_gradient) member(max_pool_input_gradient) \
    member(average_pool_input_gradient) member(concat_input_gradient) \
    member(head_input_gradient) member(head_update) member(convolution_input_gradient) \
    member(depthwise_input_gradient) member(bias_update) member(convolution_weight_update) \
    member(depthwise_weight_update)
/* clang-format on */

#define TF_KERNEL_MEMBER(name) __typeof__(tf_##name) *name;

/* All that programs call, by the name behind tf_. */
typedef struct {
    TF_EACH_KERNEL(TF_KERNEL_MEMBER)
} tf_kernel_table;

/* The set that programs call: the best that this machine has, until another one is chosen. */
extern const tf_kernel_table *tf_kernels;

/* Chooses a set by its name ("portable", "avx2", "avx512", "neon"), for all threads; none may run
 * kernels meanwhile. Returns 1, or 0 where this machine or this library doesn't have it. */
int32_t tf_choose_kernels(const char *name);

#endif
