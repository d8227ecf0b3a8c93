// Ensembles of trajectories, one thread per replica ("lane"). The arithmetic is that of philox.py, float32.py,
// trajectory_kernels.py, batches.py, least_squares_kernels.py and diagonal_network_kernels.py, in the same order, with
// each operation rounded once. Compiled without contraction into fused multiply-adds (nvcc or NVRTC: --fmad=false; g++:
// -ffp-contract=off), its results are the same bit for bit.
//
// The same file is a CUDA module and, for tests on machines without a GPU, a host library in which a loop over blocks
// and threads stands for the grid. State arrays are (D, lanes) with lanes contiguous, so that neighbouring threads
// touch neighbouring addresses. Diagonal kernels keep the coordinates of one Philox block in registers for a whole
// window.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(256, 4) name(__VA_ARGS__)
#define FOR_EACH_LANE(lanes) \
    if (const i64 lane = i64(blockIdx.x) * blockDim.x + threadIdx.x; lane < (lanes))
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
DEVICE u64 bits_of(double x) { return u64(__double_as_longlong(x)); }
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE double double_of(u64 bits) { return __longlong_as_double(i64(bits)); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE double root_of(double x) { return __dsqrt_rn(x); }
DEVICE float root_of(float x) { return __fsqrt_rn(x); }
#else
#include <cmath>
#include <cstring>
#define DEVICE static inline
#define KERNEL(name, ...) extern "C" void name(u32 grid, u32 block, __VA_ARGS__)
#define FOR_EACH_LANE(lanes)                                                      \
    for (u32 block_index = 0; block_index < grid; ++block_index)                  \
        for (u32 thread_index = 0; thread_index < block; ++thread_index)          \
            if (const i64 lane = i64(block_index) * block + thread_index; lane < (lanes))
#define UNROLL
#define ROLLED
template <typename To, typename From> DEVICE To same_bits(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    std::memcpy(&to, &from, sizeof to);
    return to;
}
DEVICE u64 bits_of(double x) { return same_bits<u64>(x); }
DEVICE u32 bits_of(float x) { return same_bits<u32>(x); }
DEVICE double double_of(u64 bits) { return same_bits<double>(bits); }
DEVICE float float_of(u32 bits) { return same_bits<float>(bits); }
DEVICE double root_of(double x) { return std::sqrt(x); }
DEVICE float root_of(float x) { return std::sqrt(x); }
#endif

// The random stream (stream.py: counter layout and purposes)

struct Words {
    u32 x0, x1, x2, x3;
};

DEVICE Words philox_words(u64 seed, u32 purpose, u64 replica, u64 step, u32 block) {
    u32 k0 = u32(seed), k1 = u32(seed >> 32);
    u32 c0 = block, c1 = u32(step), c2 = (purpose << 16) | u32(step >> 32), c3 = u32(replica);
    UNROLL for (int round = 0; round < 10; ++round) {
        const u64 first = u64(0xD2511F53u) * c0, second = u64(0xCD9E8D57u) * c2;
        c0 = u32(second >> 32) ^ c1 ^ k0;
        c1 = u32(second);
        c2 = u32(first >> 32) ^ c3 ^ k1;
        c3 = u32(first);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}

// Double precision (philox.py)

constexpr u64 MANTISSA = 0x000FFFFFFFFFFFFFull, TWO_52 = 0x4330000000000000ull, ROOT_HALF = 0x3FE6A09E667F3BCDull;
constexpr double LOG2_HIGH = 0x1.62e42feep-1, LOG2_LOW = 0x1.a39ef35793c76p-33, PI = 0x1.921fb54442d18p+1;

DEVICE double logarithm(double x) {
    const u64 shifted = bits_of(x) + (0x3FF0000000000000ull - ROOT_HALF);
    const double exponent = double_of((shifted >> 52) | TWO_52) - (0x1p52 + 1023.0);
    const double m = double_of((shifted & MANTISSA) + ROOT_HALF);
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 2.0 / 19 + z * (2.0 / 21);
    p = 2.0 / 15 + z * (2.0 / 17 + z * p);
    p = 2.0 / 11 + z * (2.0 / 13 + z * p);
    p = 2.0 / 7 + z * (2.0 / 9 + z * p);
    p = 2.0 / 3 + z * (2.0 / 5 + z * p);
    return exponent * LOG2_HIGH + ((s * z * p + exponent * LOG2_LOW) + 2.0 * s);
}

DEVICE void sine_and_cosine(u64 word, double &sine, double &cosine) {
    const u64 turned = (word >> 11) + (1ull << 50), quadrant = turned >> 51;
    const double whole = double_of((turned & ((1ull << 51) - 1)) | TWO_52) - (0x1p52 + 0x1p50);
    const double x = whole * (PI * 0x1p-52), z = x * x;
    double p = -1.0 / 1307674368000 + z * (1.0 / 355687428096000);
    p = -1.0 / 39916800 + z * (1.0 / 6227020800 + z * p);
    p = -1.0 / 5040 + z * (1.0 / 362880 + z * p);
    p = -1.0 / 6 + z * (1.0 / 120 + z * p);
    const double along = x + x * (z * p);
    p = -1.0 / 87178291200 + z * (1.0 / 20922789888000);
    p = -1.0 / 3628800 + z * (1.0 / 479001600 + z * p);
    p = -1.0 / 720 + z * (1.0 / 40320 + z * p);
    p = -1.0 / 2 + z * (1.0 / 24 + z * p);
    const double across = 1.0 + z * p;
    const bool swap = quadrant & 1;
    sine = double_of(bits_of(swap ? across : along) ^ ((quadrant & 2) << 62));
    cosine = double_of(bits_of(swap ? along : across) ^ (((quadrant + 1) & 2) << 62));
}

DEVICE u64 joined(u32 low, u32 high) { return low | (u64(high) << 32); }

DEVICE double fraction(Words x) {
    return (double_of((joined(x.x0, x.x1) >> 12) | TWO_52) - (0x1p52 - 0.5)) * 0x1p-52;
}

DEVICE double exp_minus_one(double y) {
    const double rounded = y * (1.0 / 0x1.62e42fefa39efp-1) + 0x1p52, k = rounded - 0x1p52;
    const double r = (y - k * LOG2_HIGH) - k * LOG2_LOW;
    double q = 1.0 / 479001600 + r * (1.0 / 6227020800);
    q = 1.0 / 3628800 + r * (1.0 / 39916800 + r * q);
    q = 1.0 / 40320 + r * (1.0 / 362880 + r * q);
    q = 1.0 / 720 + r * (1.0 / 5040 + r * q);
    q = 1.0 / 24 + r * (1.0 / 120 + r * q);
    q = 1.0 / 2 + r * (1.0 / 6 + r * q);
    const double power = double_of(((bits_of(rounded) & MANTISSA) + 1023) << 52);
    return power * (r + r * r * q) + (power - 1.0);
}

DEVICE double other_noise(Words x, double tails) {
    const double u = fraction(x);
    if (tails < 0.0) return (2.0 * u - 1.0) * root_of(3.0);
    double sine, cosine;
    sine_and_cosine(joined(x.x2, x.x3), sine, cosine);
    return root_of(tails * exp_minus_one(logarithm(u) * (-2.0 / tails))) * cosine;
}

// Single precision (float32.py)

DEVICE float halfway(u32 word) { return float(word) + 0.5f; }

DEVICE float log_fraction(u32 word) {
    const u32 shifted = bits_of(halfway(word)) + (0x3F800000u - 0x3F3504F3u);
    const float exponent = float(int(shifted >> 23) - (127 + 32));
    const float beyond = float_of((shifted & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
    const float below = -halfway(0xFFFFFFFFu - word) * 0x1p-32f;
    const float f = exponent == 0.0f ? below : beyond;
    const float s = f / (2.0f + f), z = s * s, square = 0.5f * f * f;
    const float rest =
        z * (float(2.0 / 3) + z * (float(2.0 / 5) + z * (float(2.0 / 7) + z * float(2.0 / 9))));
    constexpr float high = 0x1.62e3p-1f, low = float(0x1.62e42fefa39efp-1 - 0x1.62e3p-1);
    const float small = square - (s * (square + rest) + exponent * low);
    return exponent * high - (small - f);
}

DEVICE void sine_and_cosine(u32 word, float &sine, float &cosine) {
    const u32 turned = word + (1u << 29), quadrant = turned >> 30;
    const float x = float(int(turned & ((1u << 30) - 1)) - (1 << 29)) * float(PI * 0x1p-31), z = x * x;
    constexpr float s3 = float(-1.0 / 6), s5 = float(1.0 / 120), s7 = float(-1.0 / 5040), s9 = float(1.0 / 362880);
    constexpr float c2 = float(-1.0 / 2), c4 = float(1.0 / 24), c6 = float(-1.0 / 720), c8 = float(1.0 / 40320);
    constexpr float c10 = float(-1.0 / 3628800);
    const float along = x + x * (z * (s3 + z * (s5 + z * (s7 + z * s9))));
    const float across = 1.0f + z * (c2 + z * (c4 + z * (c6 + z * (c8 + z * c10))));
    const bool swap = quadrant & 1;
    sine = float_of(bits_of(swap ? across : along) ^ ((quadrant & 2) << 30));
    cosine = float_of(bits_of(swap ? along : across) ^ (((quadrant + 1) & 2) << 30));
}

DEVICE void normal_pair(u32 radial, u32 angular, float &even, float &odd) {
    const float radius = root_of(-2.0f * log_fraction(radial));
    float sine, cosine;
    sine_and_cosine(angular, sine, cosine);
    even = radius * cosine;
    odd = radius * sine;
}

// What differs between the two kinds of numbers (number_formats.py): the normals of a Philox block, and the purposes
// that they are drawn for. A state of doubles may have noise of floats.

template <typename Real> struct Precision;

template <> struct Precision<double> {
    static constexpr int width = 2;
    static constexpr u32 initial_state = 0, gradient_noise = 1;
};

template <> struct Precision<float> {
    static constexpr int width = 4;
    static constexpr u32 initial_state = 5, gradient_noise = 6;
};

constexpr u32 MINIBATCH = 2, JUMP = 3, OTHER_NOISE = 4, RESHUFFLE = 7, LABEL_NOISE = 8;

DEVICE void normals_of(Words x, double *z) {
    const double radius = root_of(-2.0 * logarithm(fraction(x)));
    double sine, cosine;
    sine_and_cosine(joined(x.x2, x.x3), sine, cosine);
    z[0] = radius * cosine;
    z[1] = radius * sine;
}

DEVICE void normals_of(Words x, float *z) {
    normal_pair(x.x0, x.x1, z[0], z[1]);
    normal_pair(x.x2, x.x3, z[2], z[3]);
}

// Gradient noise of the coordinates of a block, of which `count` remain; they may be more or fewer than the block has.
// In single precision there is Gaussian noise only.
DEVICE void draw(double *z, int count, u64 seed, u64 replica, u64 step, u32 block, double tails) {
    if (tails == 0.0) {
        normals_of(philox_words(seed, Precision<double>::gradient_noise, replica, step, block), z);
    } else {
        UNROLL for (int k = 0; k < 2; ++k)
            if (k < count) z[k] = other_noise(philox_words(seed, OTHER_NOISE, replica, step, 2 * block + k), tails);
    }
}

DEVICE void draw(float *z, int, u64 seed, u64 replica, u64 step, u32 block, double) {
    normals_of(philox_words(seed, Precision<float>::gradient_noise, replica, step, block), z);
}

// The normals of coordinates 0 to count - 1 in double precision, written `lanes` apart.
DEVICE void fill(double *z, i64 lanes, i64 count, u64 seed, u32 purpose, u64 replica, u64 step) {
    ROLLED for (i64 first = 0; first < count; first += 2) {
        double pair[2];
        normals_of(philox_words(seed, purpose, replica, step, u32(first / 2)), pair);
        z[first * lanes] = pair[0];
        if (first + 1 < count) z[(first + 1) * lanes] = pair[1];
    }
}

// Dynamics (trajectory_kernels.py)

template <typename Real>
DEVICE void advance(Real &theta, Real &velocity, Real noise, Real curvature, Real momentum, Real rate) {
    if (momentum == Real(0)) {
        theta -= rate * (curvature * theta + noise);
    } else {
        velocity = momentum * velocity + (curvature * theta + noise);
        theta -= rate * velocity;
    }
}

template <typename Real> DEVICE double loss_of(Real theta, Real curvature) {
    const double place = double(theta);
    return 0.5 * double(curvature) * (place * place);
}

template <typename Real>
DEVICE void start(i64 lane, i64 lanes, int dim, Real *theta, const Real *mean, const Real *deviation, u64 seed,
                  u64 replica) {
    constexpr int width = Precision<Real>::width;
    ROLLED for (int first = 0; first < dim; first += width) {
        Real z[width];
        normals_of(philox_words(seed, Precision<Real>::initial_state, replica + lane, 0, u32(first / width)), z);
        UNROLL for (int k = 0; k < width; ++k)
            if (first + k < dim) theta[(first + k) * lanes + lane] = z[k] * deviation[first + k] + mean[first + k];
    }
}

template <typename Real>
DEVICE void add_losses(i64 lane, i64 lanes, int dim, double *losses, const Real *theta, const Real *curvature) {
    double loss = losses[lane];
    ROLLED for (int i = 0; i < dim; ++i) loss += loss_of(theta[i * lanes + lane], curvature[i]);
    losses[lane] = loss;
}

template <typename Noise, typename Real>
DEVICE void advance_diagonal(i64 lane, i64 lanes, int dim, int steps, double *losses, Real *theta, Real *velocity,
                             const Real *curvature, const Real *deviation, Real momentum, const Real *rates,
                             const i64 *slots, u64 seed, u64 replica, u64 step, double tails) {
    constexpr int width = Precision<Noise>::width;
    ROLLED for (int first = 0; first < dim; first += width) {
        Real place[width], speed[width], scale[width], bend[width];
        Noise z[width];
        bool noisy = false;
        UNROLL for (int k = 0; k < width; ++k) {
            const bool inside = first + k < dim;
            const i64 at = i64(first + k) * lanes + lane;
            place[k] = inside ? theta[at] : Real(0);
            speed[k] = inside && momentum != Real(0) ? velocity[at] : Real(0);
            scale[k] = inside ? deviation[first + k] : Real(0);
            bend[k] = inside ? curvature[first + k] : Real(0);
            z[k] = Noise(0);
            noisy = noisy || scale[k] != Real(0);
        }
        ROLLED for (int t = 0; t < steps; ++t) {
            if (noisy) draw(z, dim - first, seed, replica + lane, step + t, u32(first / width), tails);
            UNROLL for (int k = 0; k < width; ++k)
                advance(place[k], speed[k], scale[k] * Real(z[k]), bend[k], momentum, rates[t]);
            if (slots[t] >= 0) {
                double loss = losses[slots[t] * lanes + lane];
                UNROLL for (int k = 0; k < width; ++k)
                    if (first + k < dim) loss += loss_of(place[k], bend[k]);
                losses[slots[t] * lanes + lane] = loss;
            }
        }
        UNROLL for (int k = 0; k < width; ++k) {
            const i64 at = i64(first + k) * lanes + lane;
            if (first + k < dim) theta[at] = place[k];
            if (first + k < dim && momentum != Real(0)) velocity[at] = speed[k];
        }
    }
}

// `z` is scratch of (dim, lanes); `root` (dim, dim) is a square root of the covariance.
template <typename Noise, typename Real>
DEVICE void advance_full(i64 lane, i64 lanes, int dim, int steps, double *losses, Real *theta, Real *velocity,
                         const Real *curvature, const Real *root, int noisy, Noise *z, Real momentum, const Real *rates,
                         const i64 *slots, u64 seed, u64 replica, u64 step, double tails) {
    constexpr int width = Precision<Noise>::width;
    ROLLED for (int t = 0; t < steps; ++t) {
        if (noisy) {
            ROLLED for (int first = 0; first < dim; first += width) {
                Noise some[width];
                draw(some, dim - first, seed, replica + lane, step + t, u32(first / width), tails);
                UNROLL for (int k = 0; k < width; ++k)
                    if (first + k < dim) z[i64(first + k) * lanes + lane] = some[k];
            }
        }
        ROLLED for (int i = 0; i < dim; ++i) {
            Real noise = Real(0);
            if (noisy) {
                ROLLED for (int j = 0; j < dim; ++j) noise += root[i64(i) * dim + j] * Real(z[j * lanes + lane]);
            }
            const i64 at = i * lanes + lane;
            Real place = theta[at], speed = momentum == Real(0) ? Real(0) : velocity[at];
            advance(place, speed, noise, curvature[i], momentum, rates[t]);
            theta[at] = place;
            if (momentum != Real(0)) velocity[at] = speed;
            if (slots[t] >= 0) losses[slots[t] * lanes + lane] += loss_of(place, curvature[i]);
        }
    }
}

// Sets ``alive[0]`` if all coordinates of this lane are finite: x - x is NaN where x is not. Lanes that write at the
// same time write the same value.
template <typename Real> DEVICE void look_alive(i64 lane, i64 lanes, int dim, const Real *theta, int *alive) {
    bool finite = true;
    ROLLED for (int i = 0; i < dim; ++i) {
        const Real x = theta[i * lanes + lane];
        finite = finite && x - x == Real(0);
    }
    if (finite) alive[0] = 1;
}

// Kernels of noisy quadratics: those that depend on the type of the state, and those that depend on that of the noise
// too

#define STATE_KERNELS(Real, suffix)                                                                                    \
    KERNEL(start_##suffix, i64 lanes, int dim, Real *theta, const Real *mean, const Real *deviation, u64 seed,         \
           u64 replica) {                                                                                              \
        FOR_EACH_LANE(lanes) start(lane, lanes, dim, theta, mean, deviation, seed, replica);                           \
    }                                                                                                                  \
    KERNEL(add_losses_##suffix, i64 lanes, int dim, double *losses, const Real *theta, const Real *curvature) {        \
        FOR_EACH_LANE(lanes) add_losses(lane, lanes, dim, losses, theta, curvature);                                   \
    }                                                                                                                  \
    KERNEL(look_alive_##suffix, i64 lanes, int dim, const Real *theta, int *alive) {                                   \
        FOR_EACH_LANE(lanes) look_alive(lane, lanes, dim, theta, alive);                                               \
    }

#define NOISE_KERNELS(Real, Noise, suffix)                                                                             \
    KERNEL(advance_diagonal_##suffix, i64 lanes, int dim, int steps, double *losses, Real *theta, Real *velocity,      \
           const Real *curvature, const Real *deviation, Real momentum, const Real *rates, const i64 *slots, u64 seed, \
           u64 replica, u64 step, double tails) {                                                                      \
        FOR_EACH_LANE(lanes)                                                                                           \
        advance_diagonal<Noise>(lane, lanes, dim, steps, losses, theta, velocity, curvature, deviation, momentum,      \
                                rates, slots, seed, replica, step, tails);                                             \
    }                                                                                                                  \
    KERNEL(advance_full_##suffix, i64 lanes, int dim, int steps, double *losses, Real *theta, Real *velocity,          \
           const Real *curvature, const Real *root, int noisy, Noise *z, Real momentum, const Real *rates,             \
           const i64 *slots, u64 seed, u64 replica, u64 step, double tails) {                                          \
        FOR_EACH_LANE(lanes)                                                                                           \
        advance_full<Noise>(lane, lanes, dim, steps, losses, theta, velocity, curvature, root, noisy, z, momentum,     \
                            rates, slots, seed, replica, step, tails);                                                 \
    }

STATE_KERNELS(double, float64)
STATE_KERNELS(float, float32)
NOISE_KERNELS(double, double, float64)
NOISE_KERNELS(float, float, float32)
NOISE_KERNELS(double, float, mixed)

// Exact transitions (jump.py): `power` is (dim, s, s), where s = 1 without momentum and 2 with it. `root` has the same
// shape, or for jump_full it is a matrix of order s * dim.

DEVICE void jump_diagonal(i64 lane, i64 lanes, int dim, double *losses, double *theta, double *velocity, int moving,
                          const double *curvature, const double *power, const double *root, int noisy, u64 seed,
                          u64 replica, u64 step) {
    double z[2] = {0.0, 0.0}, loss = losses[lane];
    ROLLED for (int i = 0; i < dim; ++i) {
        const i64 at = i64(i) * lanes + lane;
        if (noisy && (moving || i % 2 == 0))
            normals_of(philox_words(seed, JUMP, replica + lane, step, u32(moving ? i : i / 2)), z);
        const double place = theta[at];
        if (!moving) {
            theta[at] = power[i] * place + root[i] * (i % 2 ? z[1] : z[0]);
        } else {
            const double speed = velocity[at], *p = power + i64(4) * i, *r = root + i64(4) * i;
            theta[at] = (p[0] * place + p[1] * speed) + r[0] * z[0];
            velocity[at] = (p[2] * place + p[3] * speed) + (r[2] * z[0] + r[3] * z[1]);
        }
        loss += loss_of(theta[at], curvature[i]);
    }
    losses[lane] = loss;
}

// Row `row` of a square `root` times z, whose entries are `lanes` apart.
DEVICE double combined(const double *root, i64 row, i64 size, const double *z, i64 lanes) {
    double sum = 0.0;
    ROLLED for (i64 j = 0; j < size; ++j) sum += root[row * size + j] * z[j * lanes];
    return sum;
}

// `z` is scratch of (s * dim, lanes).
DEVICE void jump_full(i64 lane, i64 lanes, int dim, double *losses, double *theta, double *velocity, int moving,
                      const double *curvature, const double *power, const double *root, int noisy, double *z, u64 seed,
                      u64 replica, u64 step) {
    const i64 size = i64(dim) * (moving ? 2 : 1);
    double loss = losses[lane];
    if (noisy) fill(z + lane, lanes, size, seed, JUMP, replica + lane, step);
    ROLLED for (int i = 0; i < dim; ++i) {
        const i64 at = i64(i) * lanes + lane;
        const double place = theta[at];
        if (!moving) {
            theta[at] = power[i] * place + (noisy ? combined(root, i, size, z + lane, lanes) : 0.0);
        } else {
            const double speed = velocity[at], *p = power + i64(4) * i;
            theta[at] = (p[0] * place + p[1] * speed) + (noisy ? combined(root, 2 * i, size, z + lane, lanes) : 0.0);
            const double next = p[2] * place + p[3] * speed;
            velocity[at] = next + (noisy ? combined(root, 2 * i + 1, size, z + lane, lanes) : 0.0);
        }
        loss += loss_of(theta[at], curvature[i]);
    }
    losses[lane] = loss;
}

KERNEL(jump_diagonal_float64, i64 lanes, int dim, double *losses, double *theta, double *velocity, int moving,
       const double *curvature, const double *power, const double *root, int noisy, u64 seed, u64 replica, u64 step) {
    FOR_EACH_LANE(lanes)
    jump_diagonal(lane, lanes, dim, losses, theta, velocity, moving, curvature, power, root, noisy, seed, replica,
                  step);
}

KERNEL(jump_full_float64, i64 lanes, int dim, double *losses, double *theta, double *velocity, int moving,
       const double *curvature, const double *power, const double *root, int noisy, double *z, u64 seed, u64 replica,
       u64 step) {
    FOR_EACH_LANE(lanes)
    jump_full(lane, lanes, dim, losses, theta, velocity, moving, curvature, power, root, noisy, z, seed, replica, step);
}

// Minibatches of real examples (batches.py, least_squares_kernels.py). Pointers are to the first entry of a lane, whose
// further entries are `lanes` apart; an example is a contiguous row of `inputs`.

// The sum of x[j] * y[j * lanes] over j, in that order.
DEVICE double dot(const double *x, const double *y, i64 lanes, int dim) {
    double sum = 0.0;
    ROLLED for (int j = 0; j < dim; ++j) sum += x[j] * y[j * lanes];
    return sum;
}

DEVICE void add_times(double *out, double factor, const double *x, i64 lanes, int dim) {
    ROLLED for (int j = 0; j < dim; ++j) out[j * lanes] += factor * x[j];
}

DEVICE u32 below(u32 high, u32 low, u64 limit) { return u32((high * limit + (low * limit >> 32)) >> 32); }

// Brings a uniform subset of `count` entries to the front of `order`, (population, lanes). If `picks` is not null, the
// swaps are noted there for swap_back.
DEVICE void swap_in(u32 *order, u32 *picks, i64 lanes, u64 count, u64 population, u64 seed, u32 purpose, u64 replica,
                    u64 step) {
    Words x{};
    ROLLED for (u64 k = 0; k < count; ++k) {
        if (k % 2 == 0) x = philox_words(seed, purpose, replica, step, u32(k / 2));
        const u64 pick = k + (k % 2 ? below(x.x3, x.x2, population - k) : below(x.x1, x.x0, population - k));
        if (picks) picks[i64(k) * lanes] = u32(pick);
        const u32 moved = order[i64(k) * lanes];
        order[i64(k) * lanes] = order[i64(pick) * lanes];
        order[i64(pick) * lanes] = moved;
    }
}

DEVICE void swap_back(u32 *order, const u32 *picks, i64 lanes, u64 count) {
    ROLLED for (i64 k = i64(count) - 1; k >= 0; --k) {
        const i64 pick = picks[k * lanes];
        const u32 moved = order[k * lanes];
        order[k * lanes] = order[pick * lanes];
        order[pick * lanes] = moved;
    }
}

DEVICE void in_order(u32 *order, i64 lanes, u64 population) {
    ROLLED for (u64 i = 0; i < population; ++i) order[i64(i) * lanes] = u32(i);
}

// Draws the batch of one update and returns a pointer to its indices, which lie in `order`: (population, lanes), or
// (size, lanes) with replacement (`sampling` 1). `fresh` says that `order` has not been left by the update before, as
// at the start of a launch. Without replacement (`sampling` 0) swap_back must follow, with the swaps noted in `picks`,
// (size, lanes).
DEVICE const u32 *draw_batch(u32 *order, u32 *picks, i64 lanes, u64 size, u64 population, int sampling, u64 seed,
                             u64 replica, u64 step, bool fresh) {
    if (sampling == 0) {
        if (fresh) in_order(order, lanes, population);
        swap_in(order, picks, lanes, size, population, seed, MINIBATCH, replica, step);
        return order;
    }
    if (sampling == 1) {
        Words x{};
        ROLLED for (u64 k = 0; k < size; ++k) {
            if (k % 2 == 0) x = philox_words(seed, MINIBATCH, replica, step, u32(k / 2));
            order[i64(k) * lanes] = k % 2 ? below(x.x3, x.x2, population) : below(x.x1, x.x0, population);
        }
        return order;
    }
    const u64 batches = population / size, place = step % batches;
    if (fresh || place == 0) {
        in_order(order, lanes, population);
        swap_in(order, nullptr, lanes, population, population, seed, RESHUFFLE, replica, step / batches);
    }
    return order + i64(place * size) * lanes;
}

// Least squares (least_squares_kernels.py): `theta`, `velocity` and `gradient` are (dim, lanes).

DEVICE double excess_loss(const double *theta, const double *hessian, i64 lanes, int dim) {
    double total = 0.0;
    ROLLED for (int i = 0; i < dim; ++i) total += theta[i * lanes] * dot(hessian + i64(i) * dim, theta, lanes, dim);
    return 0.5 * total;
}

KERNEL(excess_losses_float64, i64 lanes, int dim, double *losses, const double *theta, const double *hessian) {
    FOR_EACH_LANE(lanes) losses[lane] = excess_loss(theta + lane, hessian, lanes, dim);
}

DEVICE void least_squares(i64 lane, i64 lanes, int dim, int steps, double *losses, double *theta, double *velocity,
                          double *gradient, u32 *order, u32 *picks, const double *inputs, const double *residuals,
                          const double *hessian, i64 population, double momentum, const double *rates,
                          const i64 *slots, i64 size, int sampling, u64 seed, u64 replica, u64 step) {
    ROLLED for (int t = 0; t < steps; ++t) {
        if (size == 0) {
            ROLLED for (int i = 0; i < dim; ++i) gradient[i * lanes] = dot(hessian + i64(i) * dim, theta, lanes, dim);
        } else {
            ROLLED for (int j = 0; j < dim; ++j) gradient[j * lanes] = 0.0;
            const u32 *chosen = draw_batch(order, picks, lanes, size, population, sampling, seed, replica + lane,
                                           step + t, t == 0);
            ROLLED for (i64 k = 0; k < size; ++k) {
                const i64 example = chosen[k * lanes];
                const double *x = inputs + example * dim;
                add_times(gradient, dot(x, theta, lanes, dim) - residuals[example], x, lanes, dim);
            }
            if (sampling == 0) swap_back(order, picks, lanes, size);
            ROLLED for (int j = 0; j < dim; ++j) gradient[j * lanes] /= double(size);
        }
        ROLLED for (int j = 0; j < dim; ++j) {
            const double speed = momentum * velocity[j * lanes] + gradient[j * lanes];
            velocity[j * lanes] = speed;
            theta[j * lanes] -= rates[t] * speed;
        }
        if (slots[t] >= 0) losses[slots[t] * lanes + lane] = excess_loss(theta, hessian, lanes, dim);
    }
}

KERNEL(least_squares_float64, i64 lanes, int dim, int steps, double *losses, double *theta, double *velocity,
       double *gradient, u32 *order, u32 *picks, const double *inputs, const double *residuals, const double *hessian,
       i64 population, double momentum, const double *rates, const i64 *slots, i64 size, int sampling, u64 seed,
       u64 replica, u64 step) {
    FOR_EACH_LANE(lanes)
    least_squares(lane, lanes, dim, steps, losses, theta + lane, velocity + lane, gradient + lane, order + lane,
                  picks + lane, inputs, residuals, hessian, population, momentum, rates, slots, size, sampling, seed,
                  replica, step);
}

// Diagonal linear network (diagonal_network_kernels.py): `weights` and `velocity` are (2 * dim, lanes), `beta` and
// `pull` (dim, lanes).

DEVICE void effective(double *beta, const double *weights, i64 lanes, int dim) {
    ROLLED for (int j = 0; j < dim; ++j) {
        const double plus = weights[j * lanes], minus = weights[(i64(dim) + j) * lanes];
        beta[j * lanes] = plus * plus - minus * minus;
    }
}

DEVICE void descend(double *weights, double *velocity, const double *pull, i64 lanes, int dim, double scale,
                    double momentum, double rate) {
    ROLLED for (int j = 0; j < dim; ++j) {
        const i64 plus = j * lanes, minus = (i64(dim) + j) * lanes;
        const double push = (2.0 * scale) * pull[plus];
        velocity[plus] = momentum * velocity[plus] + push * weights[plus];
        velocity[minus] = momentum * velocity[minus] - push * weights[minus];
        weights[plus] -= rate * velocity[plus];
        weights[minus] -= rate * velocity[minus];
    }
}

// Writes the training loss to `losses`, and the test loss to the next row.
DEVICE void measure(double *losses, const double *beta, i64 lanes, int dim, i64 count, const double *inputs,
                    const double *targets, const double *truth) {
    double train = 0.0, test = 0.0;
    ROLLED for (i64 i = 0; i < count; ++i) {
        const double residual = dot(inputs + i * dim, beta, lanes, dim) - targets[i];
        train += residual * residual;
    }
    ROLLED for (int j = 0; j < dim; ++j) {
        const double error = beta[j * lanes] - truth[j];
        test += error * error;
    }
    losses[0] = 0.5 * train / double(count);
    losses[lanes] = 0.5 * test;
}

KERNEL(network_losses_float64, i64 lanes, int dim, double *losses, const double *weights, double *beta,
       const double *inputs, const double *targets, const double *truth, i64 count) {
    FOR_EACH_LANE(lanes) {
        effective(beta + lane, weights + lane, lanes, dim);
        measure(losses + lane, beta + lane, lanes, dim, count, inputs, targets, truth);
    }
}

// Batches that take all examples `whole` times, and `rest` drawn ones. `z` is (visited, lanes); `times`, how often each
// example is taken, is (count, lanes) where `whole` > 0.
DEVICE void network_batches(i64 lane, i64 lanes, int dim, int steps, double *losses, double *weights,
                            double *velocity, double *beta, double *pull, double *z, i64 *times, u32 *order,
                            u32 *picks, const double *inputs, const double *targets, const double *truth, i64 count,
                            double momentum, const double *rates, const i64 *slots, i64 whole, i64 rest, int sampling,
                            double deviation, u64 seed, u64 replica, u64 step) {
    effective(beta, weights, lanes, dim);
    ROLLED for (int t = 0; t < steps; ++t) {
        const u32 *chosen = order;
        if (rest > 0)
            chosen = draw_batch(order, picks, lanes, rest, count, sampling, seed, replica + lane, step + t, t == 0);
        const i64 visited = whole == 0 ? rest : count;
        if (deviation > 0.0) fill(z, lanes, visited, seed, LABEL_NOISE, replica + lane, step + t);
        if (whole > 0) {
            ROLLED for (i64 i = 0; i < count; ++i) times[i * lanes] = whole;
            ROLLED for (i64 k = 0; k < rest; ++k) times[chosen[k * lanes] * lanes] += 1;
        }
        ROLLED for (int j = 0; j < dim; ++j) pull[j * lanes] = 0.0;
        ROLLED for (i64 k = 0; k < visited; ++k) {
            const i64 i = whole == 0 ? i64(chosen[k * lanes]) : k;
            const double *x = inputs + i * dim, label = deviation > 0.0 ? z[k * lanes] : 0.0;
            const double residual = dot(x, beta, lanes, dim) - targets[i];
            double share = residual - deviation * label;
            if (whole > 0) {
                const double visits = double(times[i * lanes]);
                share = visits * residual - root_of(visits) * deviation * label;
            }
            add_times(pull, share, x, lanes, dim);
        }
        if (rest > 0 && sampling == 0) swap_back(order, picks, lanes, rest);
        descend(weights, velocity, pull, lanes, dim, 1.0 / double(whole * count + rest), momentum, rates[t]);
        effective(beta, weights, lanes, dim);
        if (slots[t] >= 0)
            measure(losses + 2 * slots[t] * lanes + lane, beta, lanes, dim, count, inputs, targets, truth);
    }
}

KERNEL(network_batches_float64, i64 lanes, int dim, int steps, double *losses, double *weights, double *velocity,
       double *beta, double *pull, double *z, i64 *times, u32 *order, u32 *picks, const double *inputs,
       const double *targets, const double *truth, i64 count, double momentum, const double *rates, const i64 *slots,
       i64 whole, i64 rest, int sampling, double deviation, u64 seed, u64 replica, u64 step) {
    FOR_EACH_LANE(lanes)
    network_batches(lane, lanes, dim, steps, losses, weights + lane, velocity + lane, beta + lane, pull + lane,
                    z + lane, times + lane, order + lane, picks + lane, inputs, targets, truth, count, momentum, rates,
                    slots, whole, rest, sampling, deviation, seed, replica, step);
}

// Updates with Gaussian gradient noise of the covariance that minibatches have. `z` is (2 * count, lanes), of which the
// second half is not used where the scale of sampling is 0.
DEVICE void network_gaussian(i64 lane, i64 lanes, int dim, int steps, double *losses, double *weights,
                             double *velocity, double *beta, double *pull, double *z, const double *inputs,
                             const double *targets, const double *truth, i64 count, double momentum,
                             const double *rates, const i64 *slots, double label_scale, double sampling_scale,
                             u64 seed, u64 replica, u64 step) {
    const bool sampled = sampling_scale > 0.0, noisy = label_scale > 0.0 || sampled;
    effective(beta, weights, lanes, dim);
    ROLLED for (int t = 0; t < steps; ++t) {
        double mean = 0.0;
        if (noisy) fill(z, lanes, sampled ? 2 * count : count, seed, Precision<double>::gradient_noise, replica + lane,
                        step + t);
        if (sampled) {
            ROLLED for (i64 i = count; i < 2 * count; ++i) mean += z[i * lanes] / double(count);
        }
        ROLLED for (int j = 0; j < dim; ++j) pull[j * lanes] = 0.0;
        ROLLED for (i64 i = 0; i < count; ++i) {
            const double *x = inputs + i * dim;
            const double residual = dot(x, beta, lanes, dim) - targets[i];
            const double own = sampled ? z[(count + i) * lanes] : 0.0, label = noisy ? z[i * lanes] : 0.0;
            const double share = 1.0 / double(count) + sampling_scale * (own - mean);
            add_times(pull, share * residual + label_scale * label, x, lanes, dim);
        }
        descend(weights, velocity, pull, lanes, dim, 1.0, momentum, rates[t]);
        effective(beta, weights, lanes, dim);
        if (slots[t] >= 0)
            measure(losses + 2 * slots[t] * lanes + lane, beta, lanes, dim, count, inputs, targets, truth);
    }
}

KERNEL(network_gaussian_float64, i64 lanes, int dim, int steps, double *losses, double *weights, double *velocity,
       double *beta, double *pull, double *z, const double *inputs, const double *targets, const double *truth,
       i64 count, double momentum, const double *rates, const i64 *slots, double label_scale, double sampling_scale,
       u64 seed, u64 replica, u64 step) {
    FOR_EACH_LANE(lanes)
    network_gaussian(lane, lanes, dim, steps, losses, weights + lane, velocity + lane, beta + lane, pull + lane,
                     z + lane, inputs, targets, truth, count, momentum, rates, slots, label_scale, sampling_scale, seed,
                     replica, step);
}
