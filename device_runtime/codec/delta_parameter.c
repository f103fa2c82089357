#include "delta_format.h"

unsigned tf_delta_best_parameter(const uint32_t *values, unsigned count) {
    unsigned best = 0;
    uint32_t best_bits = UINT32_MAX;
    for (unsigned k = 0; k < TF_DELTA_RUN_CODE; k++) {
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
