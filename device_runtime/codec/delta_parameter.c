#include "delta_format.h"

unsigned tf_delta_best_parameter(const uint32_t *values, unsigned count) {
    unsigned best = 0;
    uint32_t best_bits = UINT32_MAX;
    /* Every value takes k + 1 bits at least: a larger k can't be better any more. */
    for (unsigned k = 0; k < TF_DELTA_RUN_CODE && count * (k + 1u) < best_bits; k++) {
        uint32_t bits = 0;
        for (unsigned i = 0; i < count; i++) {
            uint32_t quotient = values[i] >> k;
            bits += quotient >= TF_DELTA_ESCAPE ? TF_DELTA_ESCAPE + 32u : quotient + 1u + k;
        }
        if (bits < best_bits) {
            best_bits = bits;
            best = k;
        }
    }
    return best;
}
