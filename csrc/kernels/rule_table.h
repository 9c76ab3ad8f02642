/* Written by csrc/generate.py from fastoptim/rules/table.py. Do not edit.
 *
 * X(name, states, coefficients, gives, decays, vectors). `gives` says what a rule returns: the STEP to subtract from
 * the parameter, or the new PARAMETER. `decays` says which kinds of weight decay are compiled. `vectors` matters where
 * AVX-512 is: WIDE are of 64 bytes, NARROW of 32. Without states narrow ones are up to 7 % quicker from level-3 caches
 * and memory, and 4 % slower from nearer ones. MEASURES have the number of their terms in place of `gives`, and the
 * slots that they read, as bits, in place of `vectors`.
 *
 * FO_NARROW_RULES are those with loops over arrays of fewer bits: X(name, states, coefficients, squares, storage of
 * parameter and gradient, storage of states, name of the loop). Bit i of `squares`: state i is a mean of squares. */
#define FO_RULES(X)                                                                                                    \
    X(sgd, 0, 1, STEP, ANY_DECAY, NARROW)                                                                              \
    X(momentum, 1, 3, STEP, ANY_DECAY, WIDE)                                                                           \
    X(nesterov, 1, 5, STEP, ANY_DECAY, WIDE)                                                                           \
    X(adam, 2, 7, STEP, ANY_DECAY, WIDE)                                                                               \
    X(amsgrad, 3, 7, STEP, ANY_DECAY, WIDE)                                                                            \
    X(cautious_adam, 2, 9, STEP, ANY_DECAY, WIDE)                                                                      \
    X(cautious_amsgrad, 3, 9, STEP, ANY_DECAY, WIDE)                                                                   \
    X(average, 0, 1, STEP, NO_DECAY, NARROW)                                                                           \
    X(signsgd, 0, 3, STEP, APART, NARROW)                                                                              \
    X(signum, 1, 5, STEP, APART, WIDE)                                                                                 \
    X(lion, 1, 7, STEP, APART, WIDE)                                                                                   \
    X(cautious_lion, 1, 8, STEP, APART, WIDE)                                                                          \
    X(novograd, 1, 5, STEP, NO_DECAY, WIDE)                                                                            \
    X(rprop, 2, 5, STEP, NO_DECAY, WIDE)                                                                               \
    X(asgd, 1, 4, PARAMETER, INSIDE, WIDE)                                                                             \
    X(schedule_free_sgd, 1, 4, PARAMETER, INSIDE, WIDE)                                                                \
    X(rmsprop, 1, 5, STEP, INSIDE, WIDE)                                                                               \
    X(rmsprop_momentum, 2, 7, STEP, INSIDE, WIDE)                                                                      \
    X(rmsprop_centered, 2, 6, STEP, INSIDE, WIDE)                                                                      \
    X(rmsprop_centered_momentum, 3, 8, STEP, INSIDE, WIDE)                                                             \
    X(adadelta, 2, 4, STEP, INSIDE, WIDE)                                                                              \
    X(adamax, 2, 7, STEP, INSIDE, WIDE)                                                                                \
    X(nadam, 2, 8, STEP, ANY_DECAY, WIDE)                                                                              \
    X(adabelief, 2, 8, STEP, APART, WIDE)                                                                              \
    X(yogi, 2, 6, STEP, APART, WIDE)                                                                                   \
    X(adopt, 2, 8, STEP, APART, WIDE)                                                                                  \
    X(laprop, 2, 7, STEP, APART, WIDE)                                                                                 \
    X(ademamix, 3, 10, STEP, APART, WIDE)                                                                              \
    X(adan, 4, 12, STEP, APART, WIDE)                                                                                  \
    X(schedule_free_adamw, 2, 9, PARAMETER, NO_DECAY, WIDE)                                                            \
    X(ftrl, 2, 4, PARAMETER, NO_DECAY, WIDE)

#define FO_NARROW_RULES(X)                                                                                             \
    X(momentum, 1, 3, 0, FO_FLOAT32, FO_BFLOAT16, float32_bfloat16)                                                    \
    X(momentum, 1, 3, 0, FO_FLOAT32, FO_FLOAT8, float32_float8)                                                        \
    X(momentum, 1, 3, 0, FO_BFLOAT16, FO_FLOAT32, bfloat16_float32)                                                    \
    X(momentum, 1, 3, 0, FO_BFLOAT16, FO_BFLOAT16, bfloat16_bfloat16)                                                  \
    X(adam, 2, 7, 2, FO_FLOAT32, FO_BFLOAT16, float32_bfloat16)                                                        \
    X(adam, 2, 7, 2, FO_FLOAT32, FO_FLOAT8, float32_float8)                                                            \
    X(adam, 2, 7, 2, FO_BFLOAT16, FO_FLOAT32, bfloat16_float32)                                                        \
    X(adam, 2, 7, 2, FO_BFLOAT16, FO_BFLOAT16, bfloat16_bfloat16)

#define FO_MEASURES(X)                                                                                                 \
    X(gradient, 0, 0, 1, NO_DECAY, 2)                                                                                  \
    X(weight_and_gradient, 0, 0, 2, INSIDE, 3)                                                                         \
    X(trust, 2, 8, 2, NO_DECAY, 15)                                                                                    \
    X(stable, 2, 7, 1, INSIDE, 10)                                                                                     \
    X(agreement, 1, 4, 1, INSIDE, 6)
