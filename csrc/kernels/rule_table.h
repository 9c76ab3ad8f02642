/* Written by csrc/generate.py from fastoptim/rules/table.py. Do not edit.
 *
 * X(name, states, coefficients, gives, vectors). `gives` says what a rule returns: the STEP to subtract from the
 * parameter, or the new PARAMETER. `vectors` matters where AVX-512 is: WIDE are of 64 bytes, NARROW of 32. Without
 * states narrow ones are up to 7 % quicker from level-3 caches and memory, and 4 % slower from nearer ones. */
#define FO_RULES(X)                                                                                                    \
    X(sgd, 0, 1, STEP, NARROW)                                                                                         \
    X(momentum, 1, 3, STEP, WIDE)                                                                                      \
    X(nesterov, 1, 5, STEP, WIDE)                                                                                      \
    X(adam, 2, 7, STEP, WIDE)                                                                                          \
    X(amsgrad, 3, 7, STEP, WIDE)                                                                                       \
    X(average, 0, 1, STEP, NARROW)
