/* Loops that compute next to nothing, for benchmarks; included where rules.h is. The rooflines move the same arrays as a
 * rule with as many states: every slot is read, all but the gradient are written. */

RULE(roof0)(T g, T p, T *state, const T *k)
{
    (void)state, (void)k;
    return g - p;
}

RULE(roof1)(T g, T p, T *state, const T *k)
{
    (void)k;
    state[0] = g - state[0];
    return g - p;
}

RULE(roof2)(T g, T p, T *state, const T *k)
{
    (void)k;
    state[0] = g - state[0], state[1] = g - state[1];
    return g - p;
}

RULE(roof3)(T g, T p, T *state, const T *k)
{
    (void)k;
    state[0] = g - state[0], state[1] = g - state[1], state[2] = g - state[2];
    return g - p;
}

RULE(roof4)(T g, T p, T *state, const T *k)
{
    (void)k;
    state[0] = g - state[0], state[1] = g - state[1], state[2] = g - state[2], state[3] = g - state[3];
    return g - p;
}

/* What limits Adam in cache: one square root and one division. */
RULE(root_and_divide)(T g, T p, T *state, const T *k)
{
    (void)state, (void)k;
    return SQRT(g) / p;
}
