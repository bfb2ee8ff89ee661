"""The same PGD by others: at the same batch, steps, step size and epsilon, on the same model."""

import importlib.util
import warnings

import torch
import torch.nn.functional as F


def hand(model, images, labels, *, epsilon, step_size, steps, seed=0, backward=False):
    """The least that one writes by hand: the gradient on the input, and nothing else."""
    generator = torch.Generator(images.device).manual_seed(seed)
    x = (images + torch.empty_like(images).uniform_(-epsilon, epsilon, generator=generator)).clamp(
        0, 1
    )
    for _ in range(steps):
        x.requires_grad_()
        loss = F.cross_entropy(model(x), labels)
        if backward:  # what costs more: gradients of the parameters too
            loss.backward()
            gradient = x.grad
        else:
            gradient = torch.autograd.grad(loss, x)[0]
        x = x.detach() + step_size * gradient.sign()
        x = torch.min(torch.max(x, images - epsilon), images + epsilon).clamp(0, 1)
    return x.detach()


def torchattacks_pgd(model, images, labels, *, epsilon, step_size, steps):
    import torchattacks

    attack = torchattacks.PGD(model, eps=epsilon, alpha=step_size, steps=steps)
    return lambda: attack(images, labels)


def foolbox_pgd(model, images, labels, *, epsilon, step_size, steps):
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps)
    return lambda: attack(wrapped, images, labels, epsilons=epsilon)[1]


def art_pgd(model, images, labels, *, epsilon, step_size, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=epsilon,
        eps_step=step_size,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(images),
        verbose=False,
    )
    x, y = images.cpu().numpy(), labels.cpu().numpy()
    return lambda: torch.from_numpy(attack.generate(x, y)).to(images.device)


OTHERS = {"torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd, "ART": art_pgd}
MODULES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "ART": "art"}


def is_installed(name):
    return importlib.util.find_spec(MODULES[name]) is not None


def missing(name):
    """What stands in the table in place of a comparison with a package that is not there."""
    return f"open: {name} is not installed; pip install --no-deps -r requirements-peers.txt"
