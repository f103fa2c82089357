/* Names of kernels in a library that has several sets of them, for this machine's instruction sets:
 * TF_KERNEL(add_forward) says which tf_add_forward is meant. Boards have one set and no need of it.
 */
#ifndef TINYFLEET_KERNEL_NAMES_H
#define TINYFLEET_KERNEL_NAMES_H

#ifdef TF_KERNEL_SET

/* Inside of a set: tf_add_forward_avx2. */
#define TF_JOIN(name, set) tf_##name##_##set
#define TF_JOIN_EXPANDED(name, set) TF_JOIN(name, set)
#define TF_KERNEL(name) TF_JOIN_EXPANDED(name, TF_KERNEL_SET)

/* What kernels share with each other and nobody else calls. */
#define tf_move_by TF_KERNEL(move_by)
#define tf_merge_weights TF_KERNEL(merge_weights)
#define tf_block_prepare TF_KERNEL(block_prepare)
#define tf_block_run_all TF_KERNEL(block_run_all)
#define tf_block_run_pairs TF_KERNEL(block_run_pairs)
#define tf_block_single TF_KERNEL(block_single)
#define tf_block_widen_pair TF_KERNEL(block_widen_pair)
#define tf_block_widen_columns TF_KERNEL(block_widen_columns)
#define tf_block_set_stream TF_KERNEL(block_set_stream)
#define tf_block_gradient TF_KERNEL(block_gradient)
#define tf_find_inner TF_KERNEL(find_inner)
#define tf_gather_block TF_KERNEL(gather_block)
#define tf_gather_columns TF_KERNEL(gather_columns)
#define tf_fill_up TF_KERNEL(fill_up)
#define tf_make_slide TF_KERNEL(make_slide)
#define tf_find_taps TF_KERNEL(find_taps)
#define tf_widen_taps TF_KERNEL(widen_taps)
#define tf_slide_slowly TF_KERNEL(slide_slowly)
#define tf_gather_codes TF_KERNEL(gather_codes)
#define tf_gather_errors TF_KERNEL(gather_errors)
#define tf_correlate TF_KERNEL(correlate)
#define tf_make_panels TF_KERNEL(make_panels)
#define tf_panels_forward TF_KERNEL(panels_forward)
#define tf_depthwise_forward_in_lanes TF_KERNEL(depthwise_forward_in_lanes)
#define tf_depthwise_gradient_in_lanes TF_KERNEL(depthwise_gradient_in_lanes)
#define tf_convolution_update_in_lanes TF_KERNEL(convolution_update_in_lanes)
#define tf_depthwise_update_in_lanes TF_KERNEL(depthwise_update_in_lanes)
#define tf_head_update_in_lanes TF_KERNEL(head_update_in_lanes)
#define tf_sigmoid_table TF_KERNEL(sigmoid_table)
#define tf_recurrent_products TF_KERNEL(recurrent_products)
#define tf_normalize TF_KERNEL(normalize)
#define tf_merge_errors TF_KERNEL(merge_errors)
#define tf_recurrent_back TF_KERNEL(recurrent_back)
#define tf_write_state TF_KERNEL(write_state)
#define tf_gather_steps TF_KERNEL(gather_steps)
#define tf_convolution_forward_scratch_bytes TF_KERNEL(convolution_forward_scratch_bytes)
#define tf_convolution_input_gradient_scratch_bytes \
    TF_KERNEL(convolution_input_gradient_scratch_bytes)
#define tf_convolution_weight_update_scratch_bytes \
    TF_KERNEL(convolution_weight_update_scratch_bytes)
#define tf_depthwise_forward_scratch_bytes TF_KERNEL(depthwise_forward_scratch_bytes)
#define tf_depthwise_input_gradient_scratch_bytes TF_KERNEL(depthwise_input_gradient_scratch_bytes)
#define tf_depthwise_weight_update_scratch_bytes TF_KERNEL(depthwise_weight_update_scratch_bytes)

#else

/* For who calls kernels: the set that has been chosen. */
#define TF_KERNEL(name) (tf_kernels->name)

#endif

#define tf_convolution_forward TF_KERNEL(convolution_forward)
#define tf_depthwise_forward TF_KERNEL(depthwise_forward)
#define tf_add_forward TF_KERNEL(add_forward)
#define tf_pool_forward TF_KERNEL(pool_forward)
#define tf_max_pool_forward TF_KERNEL(max_pool_forward)
#define tf_average_pool_forward TF_KERNEL(average_pool_forward)
#define tf_concat_forward TF_KERNEL(concat_forward)
#define tf_keep_channels TF_KERNEL(keep_channels)
#define tf_expand_forward TF_KERNEL(expand_forward)
#define tf_product_forward TF_KERNEL(product_forward)
#define tf_scaling_forward TF_KERNEL(scaling_forward)
#define tf_layer_normalization_forward TF_KERNEL(layer_normalization_forward)
#define tf_gather_forward TF_KERNEL(gather_forward)
#define tf_transpose_forward TF_KERNEL(transpose_forward)
#define tf_gru_forward TF_KERNEL(gru_forward)
#define tf_lstm_forward TF_KERNEL(lstm_forward)
#define tf_requantize_forward TF_KERNEL(requantize_forward)
#define tf_rearrange_forward TF_KERNEL(rearrange_forward)
#define tf_lookup_forward TF_KERNEL(lookup_forward)
#define tf_head_forward TF_KERNEL(head_forward)
#define tf_cross_entropy TF_KERNEL(cross_entropy)
#define tf_binary_cross_entropy TF_KERNEL(binary_cross_entropy)
#define tf_mean_squared_error TF_KERNEL(mean_squared_error)
#define tf_coded_squared_error TF_KERNEL(coded_squared_error)
#define tf_error_mask TF_KERNEL(error_mask)
#define tf_error_sum TF_KERNEL(error_sum)
#define tf_error_scale TF_KERNEL(error_scale)
#define tf_rearrange_input_gradient TF_KERNEL(rearrange_input_gradient)
#define tf_lookup_input_gradient TF_KERNEL(lookup_input_gradient)
#define tf_pool_input_gradient TF_KERNEL(pool_input_gradient)
#define tf_max_pool_input_gradient TF_KERNEL(max_pool_input_gradient)
#define tf_average_pool_input_gradient TF_KERNEL(average_pool_input_gradient)
#define tf_concat_input_gradient TF_KERNEL(concat_input_gradient)
#define tf_expand_input_gradient TF_KERNEL(expand_input_gradient)
#define tf_product_input_gradient TF_KERNEL(product_input_gradient)
#define tf_product_reduced_gradient TF_KERNEL(product_reduced_gradient)
#define tf_scaling_input_gradient TF_KERNEL(scaling_input_gradient)
#define tf_gru_input_gradient TF_KERNEL(gru_input_gradient)
#define tf_lstm_input_gradient TF_KERNEL(lstm_input_gradient)
#define tf_layer_normalization_input_gradient TF_KERNEL(layer_normalization_input_gradient)
#define tf_gather_input_gradient TF_KERNEL(gather_input_gradient)
#define tf_transpose_input_gradient TF_KERNEL(transpose_input_gradient)
#define tf_head_input_gradient TF_KERNEL(head_input_gradient)
#define tf_head_update TF_KERNEL(head_update)
#define tf_convolution_input_gradient TF_KERNEL(convolution_input_gradient)
#define tf_depthwise_input_gradient TF_KERNEL(depthwise_input_gradient)
#define tf_bias_update TF_KERNEL(bias_update)
#define tf_convolution_weight_update TF_KERNEL(convolution_weight_update)
#define tf_depthwise_weight_update TF_KERNEL(depthwise_weight_update)

#endif
