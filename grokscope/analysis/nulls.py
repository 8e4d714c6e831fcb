"""What chance alone would give: exact formulas where there are any, seeded draws elsewhere.

Load-matched: a token's set of k distinct experts is drawn so that each expert is as busy as it was (conditional Bernoulli
sampling: P(S) proportional to the product of odds w_e over S; Chen, Dempster and Liu 1994). `f` [E] is the probability
that an expert is in the set and adds up to k.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import comb, log

import numpy as np

_FLOOR = 1e-7  # an expert that is always chosen would have infinite odds


def uniform_any(experts: int, k: int) -> float:
    """P(two random sets of k meet) = 1 - C(E-k, k) / C(E, k)."""
    return 1 - comb(experts - k, k) / comb(experts, k)


def information_bias(rows: np.ndarray, columns: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The plug-in information of independent variables with these numbers of values, in bits: (R-1)(C-1)/(2 N ln 2)."""
    return (rows - 1) * (columns - 1) / (2 * np.maximum(n, 1) * log(2))


def with_empty(f: np.ndarray, k: int) -> np.ndarray:
    """`f` [E] filled up to the sum k by k stand-ins for empty slots, where slots were empty."""
    missing = k - f.sum()
    return np.concatenate([f, np.full(k, missing / k)]) if missing > 1e-9 else f


def symmetric(w: np.ndarray, k: int) -> np.ndarray:
    """Elementary symmetric polynomials [..., k + 1] of w [..., E]: the sums over all sets of 0 to k of their products."""
    out = np.zeros((*w.shape[:-1], k + 1))
    out[..., 0] = 1
    for e in range(w.shape[-1]):
        out[..., 1:] = out[..., 1:] + w[..., e, None] * out[..., :-1]
    return out


def odds(f: np.ndarray, k: int) -> np.ndarray:
    """w [E], the largest 1, for which drawing k experts with P(S) ~ prod w takes expert e with probability f[e].

    Damped steps of the log-odds, then Newton's where they are slow (loads near 0 or 1): at most 100 of each.
    """
    f = np.where(f > 0, np.clip(f, _FLOOR, 1 - _FLOOR), 0.0)
    f = f * min(1.0, k / f.sum())
    there = f > 0
    if there.sum() <= k:  # all of them are always chosen, whatever their odds
        return there.astype(float)
    w, log_f = np.where(there, f / (1 - f), 0), _log_odds(f)
    without = 1 - np.eye(len(f))
    for step in range(200):
        w = w / w.max()
        rest = symmetric(w * without, k)
        got = w * rest[:, k - 1] / (w * rest[:, k - 1] + rest[:, k])
        if np.abs(got - f).max() < 1e-11:
            break
        if step < 100:
            # The steps' matrix has eigenvalues up to 2 (k = 1 of 2): undamped they would swing for ever.
            change = 0.6 * (log_f - _log_odds(got))
        else:
            both = inclusion(w, k)
            change = np.linalg.lstsq(both - np.outer(got, got), f - got, rcond=1e-13)[0].clip(-1, 1)
        w = w * np.exp(np.where(there, change, 0))
    return w / w.max()


def _log_odds(f: np.ndarray) -> np.ndarray:
    f = np.clip(f, 1e-300, 1 - 1e-16)
    return np.log(f) - np.log1p(-f)


def inclusion(w: np.ndarray, k: int) -> np.ndarray:
    """[E, E]: the probability that a set drawn with odds w holds both i and j; on the diagonal, that it holds i.

    One pass over the experts, of sums and products of what is not negative alone, so that nothing is lost to rounding.
    """
    after = np.zeros((len(w) + 1, k))
    after[-1, 0] = 1
    for j in reversed(range(len(w))):
        after[j] = after[j + 1]
        after[j, 1:] += w[j] * after[j + 1, :-1]
    before, without = np.eye(1, k)[0], np.zeros((len(w), k))  # of the experts before j: all of them, and without i
    out = np.zeros((len(w), len(w)))
    for j, x in enumerate(w):
        if k > 1:
            out[:j, j] = w[:j] * x * (without[:j, :-1] @ after[j + 1, k - 2 :: -1])
        without[:j, 1:] += x * without[:j, :-1]
        without[j], before = before, before + x * np.append(0, before[:-1])
    return (out + out.T + np.diag(w * without[:, k - 1])) / symmetric(w, k)[k]


def pair_inclusion(f: np.ndarray, k: int) -> np.ndarray:
    """[E, E]: the load-matched probability that a token chooses both i and j; f on the diagonal."""
    f = np.asarray(f, float)
    out = inclusion(odds(with_empty(f, k), k), k)[: len(f), : len(f)]
    np.fill_diagonal(out, f)
    return out


def meeting(f: np.ndarray, k: int) -> float:
    """Load-matched P(two tokens' sets meet): one less the coefficient of a^k b^k in prod(1 + w a + w b), normed."""
    w = odds(with_empty(np.asarray(f, float), k), k)
    if len(w) > len(f):  # two empty slots are not a meeting
        w_real, w_empty = w[: len(f)], w[len(f) :]
    else:
        w_real, w_empty = w, w[:0]
    table = np.zeros((k + 1, k + 1))
    table[0, 0] = 1
    for x in w_real:
        new = table.copy()
        new[1:] += x * table[:-1]
        new[:, 1:] += x * table[:, :-1]
        table = new
    for x in w_empty:
        new = table.copy()
        new[1:] += x * table[:-1]
        new[:, 1:] += x * table[:, :-1]
        new[1:, 1:] += x * x * table[:-1, :-1]
        table = new
    return float(1 - table[k, k] / symmetric(w, k)[k] ** 2)


def draw_counts(
    f: np.ndarray, k: int, n: np.ndarray, rng: np.random.Generator, w: np.ndarray | None = None
) -> np.ndarray:
    """Load-matched draws: for each of n [X] (tokens of a group) how often its tokens chose each expert, [X, E].

    Goes through the experts, splitting the tokens that still need m of the rest by whether they take this one: exact, and
    as fast for a billion tokens as for ten. w: the odds of `with_empty(f, k)`, where they are known.
    """
    experts = len(f)
    w = odds(with_empty(np.asarray(f, float), k), k) if w is None else w
    tails = np.array([symmetric(w[e:], k) for e in range(len(w) + 1)])
    need = np.zeros((len(n), k + 1), np.int64)
    need[:, k] = n
    out = np.zeros((len(n), len(w)), np.int64)
    for e, x in enumerate(w):
        for m in range(1, k + 1):
            if not (count := need[:, m]).any():
                continue
            p = min(max(x * tails[e + 1, m - 1] / tails[e, m], 0.0), 1.0) if tails[e, m] else 0.0
            taken = rng.binomial(count, p)
            out[:, e] += taken
            need[:, m] -= taken
            need[:, m - 1] += taken
    return out[:, :experts]


def draw_table(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random table with these margins: what shuffling one of two variables over the tokens gives.

    From a billion on, NumPy's limit, rows are drawn independently, so that column sums vary by a part in 30,000.
    """
    if columns.sum() >= 10**9:
        return rng.multinomial(rows.astype(np.int64), columns / columns.sum())
    out, left = np.zeros((len(rows), len(columns)), np.int64), columns.astype(np.int64).copy()
    last = len(rows) - 1
    for r, size in enumerate(rows):
        out[r] = left if r == last else rng.multivariate_hypergeometric(left, int(size), method="marginals")
        left -= out[r]
    return out


def information(table: np.ndarray) -> np.ndarray:
    """Plug-in mutual information in bits of the last two axes of a table of counts."""
    table = np.asarray(table, float)
    n = table.sum((-1, -2), keepdims=True)
    p = table / np.maximum(n, 1)
    product = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    return (p * np.log2(np.where(p > 0, p / np.where(product > 0, product, 1), 1))).sum((-1, -2))


def entropy(counts: np.ndarray) -> np.ndarray:
    """Plug-in entropy in bits over the last axis."""
    p = np.asarray(counts, float)
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-300)
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def paired(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread [I, J] of sum_t a_ti b_sj where s runs over the tokens of t's group in random order: exact.

    a: sums and sums of squares of a_ti by group, [G, I] each; b likewise [G, J]; n [G] tokens. For what is 0 or 1 it is the
    hypergeometric distribution: with tokens grouped by id, what is left when the token's identity is held.
    """
    whole = np.maximum(n, 1)[:, None].astype(float)
    mean = (a[0] / whole).T @ b[0]
    left = [np.maximum(squares - sums**2 / whole, 0) for sums, squares in (a, b)]
    return mean, np.sqrt((left[0] / np.maximum(whole - 1, 1)).T @ left[1])


def conditional_information(
    a: np.ndarray, b: np.ndarray, given: np.ndarray, orders: Iterable[np.ndarray] = ()
) -> tuple[float, np.ndarray]:
    """Plug-in I(a; b | given) in bits of whole numbers [N] each, and what it is with b[order] for each of the orders.

    H(a, c) + H(b, c) - H(a, b, c) - H(c).
    """

    def joined(code: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.unique(code * (int(column.max(initial=0)) + 1) + column, return_inverse=True)[1]

    def bits(code: np.ndarray) -> float:
        return float(entropy(np.bincount(code)))

    with_a = joined(given, a)
    known = bits(with_a) - bits(given)

    def of(c: np.ndarray) -> float:
        return known + bits(joined(given, c)) - bits(joined(with_a, c))

    return of(b), np.array([of(b[order]) for order in orders])
