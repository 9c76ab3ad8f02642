/* The update rules; written by csrc/generate.py from fastoptim/rules/updates.py. Do not edit.
 *
 * Included once for each compute type, with T, SQRT and RULE(name) defined. `state` and `k` are the states and the
 * coefficients in the order in which the rule takes them. A measure's second term is left in state[0]. Build with
 * -ffp-contract=off. */

RULE(scale)(T g, T s) { return s * g; }

RULE(coupled)(T g, T p, T wd) { return g + wd * p; }

RULE(plain)(T p, T u) { return p - u; }

RULE(decoupled)(T p, T u, T w) { return p - (w * p + u); }

RULE(sgd)(T g, T p, T *state, const T *k)
{
    const T c = k[0];
    (void)p;
    (void)state;
    T u = c * g;
    return u;
}

RULE(momentum)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], c = k[2];
    T v = state[0];
    (void)p;
    v = a * v + b * g;
    T u = c * v;
    state[0] = v;
    return u;
}

RULE(nesterov)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], c = k[2], e = k[3], f = k[4];
    T v = state[0];
    (void)p;
    v = a * v + b * g;
    T u = c * (e * v + f * g);
    state[0] = v;
    return u;
}

RULE(adam)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6];
    T m = state[0], v = state[1];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    T u = (step * m) / (SQRT(v) * r2 + eps);
    state[0] = m, state[1] = v;
    return u;
}

RULE(amsgrad)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6];
    T m = state[0], v = state[1], x = state[2];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    x = x >= v ? x : v;
    T u = (step * m) / (SQRT(x) * r2 + eps);
    state[0] = m, state[1] = v, state[2] = x;
    return u;
}

RULE(cautious_adam)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6], f = k[7], zero = k[8];
    T m = state[0], v = state[1];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    T u = f * ((step * m) / (SQRT(v) * r2 + eps));
    T s = g > zero ? m : g < zero ? zero - m : zero;
    u = s > zero ? u : zero * u;
    state[0] = m, state[1] = v;
    return u;
}

RULE(cautious_amsgrad)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6], f = k[7], zero = k[8];
    T m = state[0], v = state[1], x = state[2];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    x = x >= v ? x : v;
    T u = f * ((step * m) / (SQRT(x) * r2 + eps));
    T s = g > zero ? m : g < zero ? zero - m : zero;
    u = s > zero ? u : zero * u;
    state[0] = m, state[1] = v, state[2] = x;
    return u;
}

RULE(average)(T g, T p, T *state, const T *k)
{
    const T b = k[0];
    (void)state;
    T u = b * (p - g);
    return u;
}

RULE(signsgd)(T g, T p, T *state, const T *k)
{
    const T up = k[0], down = k[1], zero = k[2];
    (void)p;
    (void)state;
    T u = g > zero ? up : g < zero ? down : g;
    return u;
}

RULE(signum)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], up = k[2], down = k[3], zero = k[4];
    T m = state[0];
    (void)p;
    m = a * m + b * g;
    T u = m > zero ? up : m < zero ? down : m;
    state[0] = m;
    return u;
}

RULE(lion)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], up = k[4], down = k[5], zero = k[6];
    T m = state[0];
    (void)p;
    T d = b1 * m + c1 * g;
    m = b2 * m + c2 * g;
    T u = d > zero ? up : d < zero ? down : d;
    state[0] = m;
    return u;
}

RULE(cautious_lion)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], up = k[4], down = k[5], f = k[6], zero = k[7];
    T m = state[0];
    (void)p;
    T d = b1 * m + c1 * g;
    m = b2 * m + c2 * g;
    T share = g > zero ? d > zero ? f : zero : g < zero ? d < zero ? f : zero : zero;
    T u = share * (d > zero ? up : d < zero ? down : d);
    state[0] = m;
    return u;
}

RULE(novograd)(T g, T p, T *state, const T *k)
{
    const T d = k[0], wd = k[1], b1 = k[2], c1 = k[3], c = k[4];
    T m = state[0];
    m = b1 * m + c1 * (g / d + wd * p);
    T u = c * m;
    state[0] = m;
    return u;
}

RULE(rprop)(T g, T p, T *state, const T *k)
{
    const T up = k[0], down = k[1], lo = k[2], hi = k[3], zero = k[4];
    T q = state[0], w = state[1];
    (void)p;
    T s = g * q;
    w = s > zero ? w * up : s < zero ? w * down : w;
    w = w < lo ? lo : w;
    w = w > hi ? hi : w;
    q = s < zero ? zero : g;
    T u = q > zero ? w : q < zero ? zero - w : q;
    state[0] = q, state[1] = w;
    return u;
}

RULE(asgd)(T g, T p, T *state, const T *k)
{
    const T d = k[0], c = k[1], a = k[2], b = k[3];
    T x = state[0];
    p = p - (d * p + c * g);
    x = a * x + b * p;
    state[0] = x;
    return p;
}

RULE(schedule_free_sgd)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], e = k[2], c = k[3];
    T z = state[0];
    p = a * p + b * z - e * g;
    z = z - c * g;
    state[0] = z;
    return p;
}

RULE(rmsprop)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], er = k[2], eps = k[3], c = k[4];
    T v = state[0];
    (void)p;
    v = a * v + b * (g * g);
    T u = (c * g) / (SQRT(v + er) + eps);
    state[0] = v;
    return u;
}

RULE(rmsprop_momentum)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], er = k[2], eps = k[3], d = k[4], e = k[5], c = k[6];
    T v = state[0], x = state[1];
    (void)p;
    v = a * v + b * (g * g);
    x = d * x + (e * g) / (SQRT(v + er) + eps);
    T u = c * x;
    state[0] = v, state[1] = x;
    return u;
}

RULE(rmsprop_centered)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], er = k[2], eps = k[3], c = k[4], zero = k[5];
    T v = state[0], m = state[1];
    (void)p;
    v = a * v + b * (g * g);
    m = a * m + b * g;
    T w = v - m * m;
    w = w < zero ? zero : w;
    T u = (c * g) / (SQRT(w + er) + eps);
    state[0] = v, state[1] = m;
    return u;
}

RULE(rmsprop_centered_momentum)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], er = k[2], eps = k[3], d = k[4], e = k[5], c = k[6], zero = k[7];
    T v = state[0], m = state[1], x = state[2];
    (void)p;
    v = a * v + b * (g * g);
    m = a * m + b * g;
    T w = v - m * m;
    w = w < zero ? zero : w;
    x = d * x + (e * g) / (SQRT(w + er) + eps);
    T u = c * x;
    state[0] = v, state[1] = m, state[2] = x;
    return u;
}

RULE(adadelta)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], eps = k[2], c = k[3];
    T v = state[0], x = state[1];
    (void)p;
    v = a * v + b * (g * g);
    T d = (SQRT(x + eps) / SQRT(v + eps)) * g;
    x = a * x + b * (d * d);
    T u = c * d;
    state[0] = v, state[1] = x;
    return u;
}

RULE(adamax)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], e = k[3], step = k[4], eps = k[5], zero = k[6];
    T m = state[0], x = state[1];
    (void)p;
    m = b1 * m + c1 * g;
    T a = (g < zero ? zero - g : g) + e;
    x = b2 * x;
    x = x >= a ? x : a;
    T u = (step * m) / (x + eps);
    state[0] = m, state[1] = x;
    return u;
}

RULE(nadam)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], f = k[4], step = k[5], r2 = k[6], eps = k[7];
    T m = state[0], v = state[1];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    T u = (f * g + step * m) / (SQRT(v) * r2 + eps);
    state[0] = m, state[1] = v;
    return u;
}

RULE(adabelief)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], er = k[4], step = k[5], r2 = k[6], eps = k[7];
    T m = state[0], v = state[1];
    (void)p;
    m = b1 * m + c1 * g;
    T d = g - m;
    v = b2 * v + c2 * (d * d) + er;
    T u = (step * m) / (SQRT(v) * r2 + eps);
    state[0] = m, state[1] = v;
    return u;
}

RULE(yogi)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], c2 = k[2], step = k[3], r2 = k[4], eps = k[5];
    T m = state[0], v = state[1];
    (void)p;
    m = b1 * m + c1 * g;
    T d = g * g;
    T e = c2 * d;
    v = v > d ? v - e : v < d ? v + e : v;
    T u = (step * m) / (SQRT(v) * r2 + eps);
    state[0] = m, state[1] = v;
    return u;
}

RULE(adopt)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], eps = k[4], lo = k[5], hi = k[6], c = k[7];
    T m = state[0], v = state[1];
    (void)p;
    T d = SQRT(v);
    d = d < eps ? eps : d;
    T x = g / d;
    x = x < lo ? lo : x;
    x = x > hi ? hi : x;
    m = b1 * m + c1 * x;
    v = b2 * v + c2 * (g * g);
    T u = c * m;
    state[0] = m, state[1] = v;
    return u;
}

RULE(laprop)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], r2 = k[4], eps = k[5], step = k[6];
    T m = state[0], v = state[1];
    (void)p;
    v = b2 * v + c2 * (g * g);
    m = b1 * m + c1 * (g / (SQRT(v) * r2 + eps));
    T u = step * m;
    state[0] = m, state[1] = v;
    return u;
}

RULE(ademamix)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], b3 = k[4], c3 = k[5], step = k[6], f = k[7], r2 = k[8], eps = k[9];
    T m = state[0], v = state[1], w = state[2];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    w = b3 * w + c3 * g;
    T u = (step * m + f * w) / (SQRT(v) * r2 + eps);
    state[0] = m, state[1] = v, state[2] = w;
    return u;
}

RULE(adan)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], b3 = k[4], c3 = k[5], e = k[6], f = k[7], s1 = k[8], s2 = k[9], r3 = k[10], eps = k[11];
    T m = state[0], v = state[1], w = state[2], q = state[3];
    (void)p;
    T d = e * (g - q);
    m = b1 * m + c1 * g;
    w = b2 * w + c2 * d;
    T x = g + f * d;
    v = b3 * v + c3 * (x * x);
    T u = (s1 * m + s2 * w) / (SQRT(v) * r3 + eps);
    state[0] = m, state[1] = v, state[2] = w, state[3] = g;
    return u;
}

RULE(schedule_free_adamw)(T g, T p, T *state, const T *k)
{
    const T b2 = k[0], c2 = k[1], r2 = k[2], eps = k[3], wd = k[4], a = k[5], b = k[6], e = k[7], c = k[8];
    T z = state[0], v = state[1];
    v = b2 * v + c2 * (g * g);
    T x = g / (SQRT(v) * r2 + eps) + wd * p;
    p = a * p + b * z - e * x;
    z = z - c * x;
    state[0] = z, state[1] = v;
    return p;
}

RULE(ftrl)(T g, T p, T *state, const T *k)
{
    const T h = k[0], l1 = k[1], down = k[2], l2 = k[3];
    T n = state[0], z = state[1];
    T s = SQRT(n);
    n = n + g * g;
    T r = SQRT(n);
    z = z + g - (r - s) * h * p;
    T y = z < down ? down : z;
    y = y > l1 ? l1 : y;
    p = (y - z) / (r * h + l2);
    state[0] = n, state[1] = z;
    return p;
}

RULE(gradient)(T g, T p, T *state, const T *k)
{
    (void)p;
    (void)state;
    (void)k;
    return g;
}

RULE(weight_and_gradient)(T g, T p, T *state, const T *k)
{
    (void)k;
    state[0] = g;
    return p;
}

RULE(trust)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6], w = k[7];
    T m = state[0], v = state[1];
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    T u = w * p + (step * m) / (SQRT(v) * r2 + eps);
    state[0] = u;
    return p;
}

RULE(stable)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6];
    T m = state[0], v = state[1];
    (void)p;
    (void)m;
    (void)b1;
    (void)c1;
    (void)step;
    v = b2 * v + c2 * (g * g);
    T d = SQRT(v) * r2;
    d = d < eps ? eps : d;
    return g / d;
}

RULE(agreement)(T g, T p, T *state, const T *k)
{
    const T b = k[0], c = k[1], zero = k[2], one = k[3];
    T m = state[0];
    (void)p;
    T d = b * m + c * g;
    T s = g > zero ? d : g < zero ? zero - d : zero;
    return s > zero ? one : zero;
}
