"""The numbers of the paper's tables, as data, to compare with ours.

An aggregate is (geometric interquartile mean, low, high); low and high are its 95 % interval.
Methods are in the order teacher-distill, student-distill, ppd.
"""

# Tables 1 and 8: suite → size → methods. The interval of ppd, smaller, on Procgen is Table 8's.
TABLE_1 = {
    "atari": {
        "smaller": [(0.86, 0.81, 0.90), (0.94, 0.89, 1.00), (0.97, 0.94, 1.01)],
        "same": [(1.00, 0.97, 1.04), (1.07, 1.03, 1.12), (1.08, 1.04, 1.13)],
        "larger": [(1.07, 1.03, 1.13), (1.09, 1.05, 1.15), (1.10, 1.05, 1.16)],
    },
    "mujoco": {
        "smaller": [(0.99, 0.98, 1.00), (0.99, 0.98, 1.00), (0.99, 0.97, 1.00)],
        "same": [(0.99, 0.98, 1.00), (1.00, 0.99, 1.00), (1.00, 1.00, 1.02)],
        "larger": [(0.99, 0.97, 1.00), (1.00, 1.00, 1.02), (1.00, 0.99, 1.01)],
    },
    "procgen": {
        "smaller": [(0.72, 0.69, 0.77), (0.78, 0.74, 0.83), (0.93, 0.87, 1.01)],
        "same": [(0.84, 0.78, 0.89), (0.88, 0.84, 0.94), (1.03, 0.97, 1.08)],
        "larger": [(0.91, 0.86, 0.98), (0.96, 0.93, 1.00), (1.04, 0.98, 1.08)],
    },
    "procgen, training levels": {
        "smaller": [(0.62, 0.60, 0.66), (0.71, 0.66, 0.76), (0.81, 0.77, 0.87)],
        "same": [(0.76, 0.74, 0.79), (0.79, 0.75, 0.83), (0.88, 0.84, 0.91)],
        "larger": [(0.86, 0.83, 0.89), (0.86, 0.83, 0.90), (0.95, 0.92, 0.98)],
    },
}

# Table 2: corrupted teacher, methods; larger students. Its row of Procgen is that of Table 6.
TABLE_2_ATARI = [(0.34, 0.23, 0.51), (0.40, 0.28, 0.54), (0.46, 0.30, 0.64), (0.64, 0.48, 0.80)]

# Table 5: environment → teacher, then the methods of smaller, same, larger. Atari human-normalised.
TABLE_5 = {
    "AtlantisNoFrameskip-v4": [
        12.85, 21.1, 16.27, 23.43, 18.07, 14.07, 20.42, 18.07, 19.64, 28.03,
    ],
    "BeamRiderNoFrameskip-v4": [0.2, 0.12, 0.16, 0.2, 0.2, 0.23, 0.26, 0.22, 0.22, 0.25],
    "CrazyClimberNoFrameskip-v4": [2.08, 1.53, 2.83, 2.23, 2.19, 2.92, 2.33, 2.36, 2.35, 2.62],
    "DemonAttackNoFrameskip-v4": [4.45, 5.62, 11.08, 11.61, 9.64, 10.25, 8.71, 9.37, 7.59, 9.55],
    "EnduroNoFrameskip-v4": [0.69, 0.57, 0.61, 0.58, 0.79, 0.8, 0.88, 0.85, 0.85, 0.87],
    "FreewayNoFrameskip-v4": [0.99, 0.73, 0.69, 0.98, 0.95, 0.97, 1.0, 0.98, 0.96, 0.99],
    "MsPacmanNoFrameskip-v4": [0.35, 0.33, 0.34, 0.31, 0.34, 0.38, 0.34, 0.39, 0.36, 0.38],
    "PongNoFrameskip-v4": [1.17, 0.98, 1.13, 1.14, 1.16, 1.17, 1.17, 1.17, 1.17, 1.17],
    "QbertNoFrameskip-v4": [0.58, 0.54, 0.58, 0.39, 0.66, 0.7, 0.73, 0.67, 0.76, 0.76],
    "SeaquestNoFrameskip-v4": [0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04],
    "ZaxxonNoFrameskip-v4": [0.69, 0.51, 0.59, 0.58, 0.57, 0.58, 0.68, 0.59, 0.6, 0.64],
    "Ant-v4": [3574, 3529, 3505, 3279, 3466, 3543, 3549, 3530, 3630, 3490],
    "HalfCheetah-v4": [6664, 6588, 6530, 6549, 6595, 6621, 6638, 6567, 6620, 6631],
    "Hopper-v4": [2510, 2451, 2521, 2501, 2489, 2496, 2534, 2454, 2540, 2527],
    "Humanoid-v4": [4540, 3747, 4226, 4443, 4070, 4591, 4804, 3737, 4416, 4618],
    "Swimmer-v4": [None] * 10,
    "coinrun, training levels": [7.29, 5.39, 5.55, 6.76, 5.94, 6.12, 6.99, 6.63, 6.91, 7.25],
    "jumper, training levels": [8.39, 6.98, 7.07, 7.89, 8.22, 8.29, 8.41, 8.29, 8.43, 8.43],
    "miner, training levels": [6.64, 1.24, 1.47, 1.76, 2.34, 2.8, 4.39, 3.08, 4.11, 5.61],
    "ninja, training levels": [6.38, 3.44, 4.21, 4.61, 4.55, 4.73, 5.18, 5.23, 5.12, 5.65],
    "coinrun": [6.28, 5.2, 5.08, 6.17, 5.06, 5.55, 6.36, 5.7, 5.74, 6.45],
    "jumper": [5.34, 3.89, 4.53, 5.4, 5.57, 5.47, 5.75, 5.6, 5.9, 5.73],
    "miner": [4.57, 1.22, 1.46, 1.49, 1.87, 2.51, 3.66, 2.37, 3.34, 4.43],
    "ninja": [4.44, 3.34, 3.83, 4.33, 4.1, 4.13, 4.68, 4.29, 4.58, 4.57],
}  # fmt: skip

# Tables 6, 9: environment → original teacher's score, corrupted teacher, methods; larger students.
# Procgen's unseen levels have only fractions: Table 6's scores are of training levels.
TABLE_6 = {
    "BeamRiderNoFrameskip-v4": [0.2, 0.15, 0.14, 0.16, 0.19],
    "CrazyClimberNoFrameskip-v4": [2.08, 0.22, 0.22, 0.3, 0.41],
    "MsPacmanNoFrameskip-v4": [0.35, 0.38, 0.43, 0.47, 0.66],
    "QbertNoFrameskip-v4": [0.58, 0.52, 0.65, 0.59, 0.8],
    "atari": [None, (0.42, 0.33, 0.57), (0.48, 0.38, 0.61), (0.52, 0.38, 0.68), (0.69, 0.55, 0.82)],
    "miner": [None, 0.69, 0.36, 0.48, 0.69],
    "jumper": [None, 0.56, 0.6, 0.63, 0.63],
    "coinrun": [None, 0.8, 0.71, 0.77, 0.83],
    "ninja": [None, 0.64, 0.69, 0.65, 0.72],
    "procgen": [
        None, (0.65, 0.63, 0.69), (0.63, 0.59, 0.67), (0.64, 0.61, 0.67), (0.71, 0.68, 0.74),
    ],
    "miner, training levels": [6.64, 0.82, 0.41, 0.56, 0.82],
    "jumper, training levels": [8.39, 0.89, 0.87, 0.88, 0.91],
    "coinrun, training levels": [7.29, 0.88, 0.86, 0.88, 0.92],
    "ninja, training levels": [6.38, 0.78, 0.78, 0.75, 0.83],
    "procgen, training levels": [
        None, (0.86, 0.79, 0.91), (0.79, 0.77, 0.83), (0.79, 0.75, 0.83), (0.87, 0.84, 0.89),
    ],
}  # fmt: skip

# Table 7: teacher's score, PPO without a teacher, methods; larger students.
TABLE_7 = {
    "atari": [0.48, (0.38, 0.27, 0.51), (1.13, 1.02, 1.28), (1.13, 1.03, 1.29), (1.16, 1.05, 1.33)],
    "procgen, training levels": [
        7.07, (0.44, 0.38, 0.50), (0.86, 0.83, 0.89), (0.86, 0.83, 0.90), (0.95, 0.92, 0.98),
    ],
    "procgen": [
        5.07, (0.71, 0.63, 0.79), (0.91, 0.86, 0.98), (0.96, 0.93, 1.00), (1.04, 0.97, 1.08),
    ],
}  # fmt: skip
