/* Trains the first plan of a model with the sets of kernels that are named, on inputs that follow from
 * nothing else; prints each set's name and a checksum of the state. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tinyfleet/engine.h"
#include "tinyfleet/kernels.h"

#define STEPS 12u
#define RATE_Q20 10485u

extern const tf_model tf_the_model;

static uint32_t train(tf_engine *engine, const tf_plan *plan, int8_t *sample) {
    for (uint32_t step = 0; step < STEPS; step++) {
        for (uint32_t i = 0; i < tf_the_model.sample_bytes; i++) {
            sample[i] = (int8_t)((step * 7919u + i * 104729u) * 2654435761u >> 24);
        }
        tf_engine_train_step(engine, sample, (int32_t)(step % tf_the_model.labels), RATE_Q20, 3);
    }
    uint32_t sum = 2166136261u;
    for (uint32_t i = 0; i < plan->state_bytes; i++) {
        sum = (sum ^ engine->frame.state[i]) * 16777619u;
    }
    return sum;
}

int main(int count, char **names) {
    const tf_plan *plan = &tf_the_model.plans[0];
    const uint32_t bytes = tf_engine_pool_bytes(&tf_the_model, plan);
    void *pool = malloc(bytes);
    int8_t *sample = malloc(tf_the_model.sample_bytes);
    for (int i = 1; i < count; i++) {
        tf_engine engine;
        if (tf_choose_kernels(names[i]) == 0 ||
            tf_engine_load(&engine, &tf_the_model, plan, tf_the_model.factory_weights, pool,
                           bytes) != TF_OK) {
            return 1;
        }
        printf("%s %08" PRIx32 "\n", names[i], train(&engine, plan, sample));
    }
    free(sample);
    free(pool);
    return 0;
}
