/* X(name, states, coefficients): the rules of rules.h, then the loops that benchmarks compare them with. */
#define FO_RULES(X)                                                                                                    \
    X(sgd, 0, 1)                                                                                                       \
    X(momentum, 1, 3)                                                                                                  \
    X(nesterov, 1, 5)                                                                                                  \
    X(adam, 2, 7)                                                                                                      \
    X(amsgrad, 3, 7)

#define FO_YARDSTICKS(X)                                                                                               \
    X(roof0, 0, 0)                                                                                                     \
    X(roof1, 1, 0)                                                                                                     \
    X(roof2, 2, 0)                                                                                                     \
    X(roof3, 3, 0)                                                                                                     \
    X(root_and_divide, 0, 0)
