import math

import pytest
import torch
from tiny_models import CAPTIONS, write_config
from torch import nn

from degla_ray.config import ModelConfig, TeacherConfig
from degla_ray.errors import SettingError
from degla_ray.model import Teacher, encode_image, encode_text
from degla_ray.model.build import build


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("count", torch.tensor(0))


def moved(student: Student) -> Student:
    with torch.no_grad():
        student.weight += 1.0
        student.count += 5
    return student


def test_teacher_update_256_samples_equals_the_formula_and_copies_buffers():
    student = Student()
    teacher = Teacher(student, TeacherConfig())
    teacher.update(moved(student), samples=256)
    expected = 0.9996 * torch.tensor([1.0, 2.0]) + 0.0004 * torch.tensor([2.0, 3.0])
    assert torch.allclose(teacher.model.weight, expected, rtol=0, atol=2.4e-7)
    assert teacher.model.count.item() == 5


@pytest.mark.parametrize(("samples", "steps"), [(32, 64), (64, 32), (2048, 1)])
def test_teacher_update_any_batch_size_decays_alike_per_sample(samples, steps):
    student = Student()
    teacher = Teacher(student, TeacherConfig(decay=0.99))
    moved(student)
    for _ in range(steps):
        teacher.update(student, samples)
    left = 0.99 ** (2048 / 256)
    assert (student.weight - teacher.model.weight).tolist() == pytest.approx([left, left], rel=1e-5)


def test_teacher_decay_one_never_moves():
    student = Student()
    teacher = Teacher(student, TeacherConfig(decay=1.0))
    teacher.update(moved(student), samples=256)
    assert teacher.model.weight.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.1])
def test_teacher_config_decay_out_of_range_names_the_setting(decay):
    with pytest.raises(SettingError, match=r"teacher\.decay"):
        TeacherConfig(decay=decay)


def test_teacher_is_a_frozen_copy_in_eval_mode(tmp_path):
    student = build(ModelConfig(name=write_config(tmp_path))).model
    teacher = Teacher(student, TeacherConfig())
    assert student.training
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(p.requires_grad for p in student.parameters())
    mine = {p.data_ptr() for p in teacher.model.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in student.parameters())


def test_teacher_encode_equals_the_student_it_was_copied_from_without_gradient(tmp_path):
    loaded = build(ModelConfig(name=write_config(tmp_path)))
    teacher = Teacher(loaded.model, TeacherConfig())
    images_BCHW, tokens_BL = torch.randn(2, 3, 32, 32), loaded.tokenizer(CAPTIONS)
    img_BD, txt_BD = teacher.encode(images_BCHW, tokens_BL)
    assert not img_BD.requires_grad
    assert not txt_BD.requires_grad
    loaded.model.eval()
    # 1e-6, not equal: without gradient torch takes another attention kernel.
    assert torch.allclose(img_BD, encode_image(loaded.model, images_BCHW), rtol=0, atol=1e-6)
    assert torch.allclose(txt_BD, encode_text(loaded.model, tokens_BL), rtol=0, atol=1e-6)


def test_teacher_distance_is_the_l2_norm_over_all_parameters():
    student = Student()
    teacher = Teacher(student, TeacherConfig())
    assert teacher.distance(student) == 0.0
    assert teacher.distance(moved(student)) == pytest.approx(math.sqrt(2.0))


def test_teacher_state_dict_continues_in_another_teacher():
    student = Student()
    teacher = Teacher(student, TeacherConfig(decay=0.5))
    teacher.update(moved(student), samples=256)
    other = Teacher(student, TeacherConfig(decay=0.5))
    assert other.distance(teacher.model) > 0
    other.load_state_dict(teacher.state_dict())
    assert other.distance(teacher.model) == 0.0
    with pytest.raises(RuntimeError, match="count"):
        other.load_state_dict({"weight": torch.zeros(2)})
