/* Row pairs: where the values of packed weights lie.
 *
 * A matrix of rows of L int8 values, where two rows lie interleaved byte by byte: L is filled up to
 * the *packed length* P, a multiple of 4, the number of rows to an even one, and what is left over
 * is zero. One word then holds two values of two rows: SXTB16 makes of it two pairs for SMLAD,
 * without any shuffling of the inputs.
 */
#ifndef TINYFLEET_ROW_PAIRS_H
#define TINYFLEET_ROW_PAIRS_H

#include <stdint.h>

static inline uint32_t tf_packed_length(uint32_t length) {
    return (length + 3u) & ~3u;
}

static inline uint32_t tf_packed_bytes(uint32_t rows, uint32_t length) {
    return ((rows + 1u) & ~1u) * tf_packed_length(length);
}

/* Place of value `at` of `row`, in rows of this packed length. */
static inline uint32_t tf_packed_place(uint32_t row, uint32_t at, uint32_t packed_length) {
    return (row & ~1u) * packed_length + 2u * at + (row & 1u);
}

#endif
