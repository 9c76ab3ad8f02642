/* X(name, states, coefficients, vectors): the rules of rules.h, then the loops that benchmarks compare them with. `vectors`
 * matters where AVX-512 is: WIDE are of 64 bytes, NARROW of 32. With only two streams, narrow ones are up to 7 % quicker
 * from level-3 caches and memory, and 4 % slower from nearer ones. */
#define FO_RULES(X)                                                                                                    \
    X(sgd, 0, 1, NARROW)                                                                                               \
    X(momentum, 1, 3, WIDE)                                                                                            \
    X(nesterov, 1, 5, WIDE)                                                                                            \
    X(adam, 2, 7, WIDE)                                                                                                \
    X(amsgrad, 3, 7, WIDE)

#define FO_YARDSTICKS(X)                                                                                               \
    X(roof0, 0, 0, NARROW)                                                                                             \
    X(roof1, 1, 0, WIDE)                                                                                               \
    X(roof2, 2, 0, WIDE)                                                                                               \
    X(roof3, 3, 0, WIDE)                                                                                               \
    X(root_and_divide, 0, 0, WIDE)
