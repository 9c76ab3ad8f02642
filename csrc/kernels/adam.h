/* Adam's coefficients; written by csrc/generate.py from fastoptim/rules/coefficients.py. Do not edit. */

static void adam_coefficients(double lr, double beta1, double beta2, double eps, int hat, double t, double *k)
{
    double bc1 = 1.0 - power(beta1, t);
    double bc2 = 1.0 - power(beta2, t);
    k[0] = beta1;
    k[1] = 1.0 - beta1;
    k[2] = beta2;
    k[3] = 1.0 - beta2;
    k[4] = hat ? (lr * sqrt(bc2)) / bc1 : lr / bc1;
    k[5] = hat ? 1.0 : 1.0 / sqrt(bc2);
    k[6] = eps;
}
