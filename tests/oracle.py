"""The paper's formulas in float64 NumPy: what the scripts' losses are held against.

Gradients are central differences of these formulas, so no derivation is shared with autograd.
"""

import numpy as np


class Gaussian:
    """Diagonal, with state-independent log standard deviations."""

    @staticmethod
    def log_prob(means, log_std, actions):
        z = (actions - means) / np.exp(log_std)
        return (-(z**2) / 2 - log_std - np.log(2 * np.pi) / 2).sum(-1)

    @staticmethod
    def entropy(means, log_std):
        return np.full(len(means), (log_std + np.log(2 * np.pi * np.e) / 2).sum())

    @staticmethod
    def kl(p, q):
        """KL(p ‖ q) per state, p and q being pairs of means and log standard deviations."""
        (p_mean, p_log_std), (q_mean, q_log_std) = p, q
        spread = np.exp(2 * p_log_std) + (p_mean - q_mean) ** 2
        return (q_log_std - p_log_std + spread / (2 * np.exp(2 * q_log_std)) - 1 / 2).sum(-1)


class Categorical:
    """Over logits; `log_std` is empty."""

    @staticmethod
    def log_probs(logits):
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    @staticmethod
    def log_prob(logits, log_std, actions):
        return Categorical.log_probs(logits)[np.arange(len(logits)), actions]

    @staticmethod
    def entropy(logits, log_std):
        log_p = Categorical.log_probs(logits)
        return -(np.exp(log_p) * log_p).sum(-1)

    @staticmethod
    def kl(p, q):
        log_p, log_q = Categorical.log_probs(p[0]), Categorical.log_probs(q[0])
        return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def normalize(advantages):
    if len(advantages) == 1:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)


def losses(family, batch, coefs, outputs, log_std, values):
    """Every term to be minimised over a minibatch; with distill_lambda None, PPO alone."""
    epsilon = coefs["clip_coef"]
    ratio = np.exp(family.log_prob(outputs, log_std, batch["actions"]) - batch["logprobs"])
    advantages = normalize(batch["advantages"])
    clipped = np.minimum(np.maximum(ratio, 1 - epsilon), 1 + epsilon)
    terms = {
        "pg_loss": -np.mean(np.minimum(ratio * advantages, clipped * advantages)),
        "v_loss": np.mean((values - batch["returns"]) ** 2),
        "entropy_loss": np.mean(family.entropy(outputs, log_std)),
    }
    loss = terms["pg_loss"] - coefs["ent_coef"] * terms["entropy_loss"]
    loss += coefs["vf_coef"] * terms["v_loss"]
    if coefs["distill_lambda"] is not None:
        student, teacher = (outputs, log_std), (batch["teacher_outputs"], batch["teacher_log_std"])
        pair = (teacher, student) if coefs["kl"] == "forward" else (student, teacher)
        kl = family.kl(*pair)
        terms["kl"] = np.mean(kl)
        weight = coefs.get("weight")  # constants, where the ratio is detached
        weight = np.maximum(ratio, 1 - epsilon) if weight is None else weight
        terms["distill_loss"] = coefs["distill_lambda"] * np.mean(kl * weight)
        loss += terms["distill_loss"]
    return terms | {"loss": loss}


def gradients(function, arrays, step=1e-6):
    """Central differences of each scalar that `function(*arrays)` names, by each array."""
    answers = {name: [np.zeros(a.shape) for a in arrays] for name in function(*arrays)}
    for which, array in enumerate(arrays):
        for index in np.ndindex(array.shape):
            above, below = [list(arrays), list(arrays)]
            above[which], below[which] = array.copy(), array.copy()
            above[which][index] += step
            below[which][index] -= step
            high, low = function(*above), function(*below)
            for name, answer in answers.items():
                answer[which][index] = (high[name] - low[name]) / (2 * step)
    return answers


def gae(rewards, values, next_values, terminations, ended, gamma, gae_lambda):
    """Â_t = Σ_l (γλ)^l δ_t+l over the rest of the episode, by the definition; arrays (T, N)."""
    T, N = rewards.shape
    advantages = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            for k in range(t, T):
                bootstrap = 0 if terminations[k, n] else gamma * next_values[k, n]
                delta = rewards[k, n] + bootstrap - values[k, n]
                advantages[t, n] += (gamma * gae_lambda) ** (k - t) * delta
                if ended[k, n]:
                    break
    return advantages


class RewardScale:
    """SB3's VecNormalize on rewards, from the whole history at every step.

    The running estimate starts with 1e-4 samples of mean 0 and variance 1.
    """

    def __init__(self, num_envs, gamma=0.99):
        self.gamma, self.returns, self.history = gamma, np.zeros(num_envs), []

    def __call__(self, rewards, ended):
        self.returns = self.gamma * self.returns + rewards
        self.history.append(self.returns.copy())
        _, var = moments(np.concatenate(self.history))
        self.returns = np.where(ended, 0, self.returns)
        return np.clip(rewards / np.sqrt(var + 1e-8), -10, 10)


def moments(samples, prior=1e-4):
    """Mean and variance along axis 0 of the samples and `prior` samples of mean 0, variance 1."""
    count = len(samples) + prior
    mean = samples.sum(0) / count
    return mean, ((samples**2).sum(0) + prior) / count - mean**2
