//! Gradient clipping. burn's clips each parameter by its own norm; the published rule is about all of them
//! together (Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, algorithm 1).

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::study::GradientClipping;

/// The gradients that the optimizer is to see. Nothing is read back from the device.
pub(crate) fn clip<M: Module>(
    clipping: &GradientClipping,
    module: &M,
    mut gradients: GradientsParams,
) -> GradientsParams {
    match *clipping {
        GradientClipping::None {} => {}
        GradientClipping::Value { max_value } => module.visit(&mut CutOff {
            gradients: &mut gradients,
            max_value,
        }),
        GradientClipping::GlobalNorm { max_norm } => {
            let mut squares = Squares {
                gradients: &gradients,
                sum: None,
            };
            module.visit(&mut squares);
            if let Some(sum) = squares.sum {
                // A norm of 0 gives an infinite ratio, which is cut off like any other above 1.
                let factor = (sum.sqrt().recip() * max_norm).clamp_max(1.0);
                module.visit(&mut Scale {
                    gradients: &mut gradients,
                    factor,
                });
            }
        }
    }
    gradients
}

/// The squared norm of all gradients together, read back from the device.
pub(crate) fn square_norm<M: Module>(module: &M, gradients: &GradientsParams) -> f64 {
    let mut squares = Squares {
        gradients,
        sum: None,
    };
    module.visit(&mut squares);
    squares
        .sum
        .map_or(0.0, |sum| f64::from(sum.into_scalar::<f32>()))
}

struct Squares<'a> {
    gradients: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let square = gradient.square().sum();
            self.sum = Some(match self.sum.take() {
                None => square,
                Some(sum) => sum + square,
            });
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let scaled = gradient * self.factor.clone().reshape([1; D]);
            self.gradients.register(param.id, scaled);
        }
    }
}

struct CutOff<'a> {
    gradients: &'a mut GradientsParams,
    max_value: f64,
}

impl ModuleVisitor for CutOff<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let cut = gradient.clamp(-self.max_value, self.max_value);
            self.gradients.register(param.id, cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[derive(Module, Debug)]
    struct Two {
        one: Param<Tensor<1>>,
        two: Param<Tensor<2>>,
    }

    /// The gradients 3, 4 and 12 (norm 13) after clipping.
    fn clipped(clipping: &GradientClipping) -> Vec<f32> {
        let device = Device::flex().autodiff();
        let module = Two {
            one: Param::from_tensor(Tensor::from_floats([1.0, 1.0], &device)),
            two: Param::from_tensor(Tensor::from_floats([[1.0]], &device)),
        };
        let weights = Tensor::<1>::from_floats([3.0, -4.0], &device);
        let loss = (module.one.val() * weights).sum() + (module.two.val() * 12.0).sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &module);
        let gradients = clip(clipping, &module, gradients);
        let numbers = |data: burn::tensor::TensorData| data.try_to_vec::<f32>().expect("is f32");
        let mut all = numbers(gradients.get::<1>(module.one.id).expect("one").into_data());
        all.extend(numbers(
            gradients.get::<2>(module.two.id).expect("two").into_data(),
        ));
        all
    }

    #[test]
    fn the_norm_of_all_gradients_together_is_limited() {
        assert_eq!(clipped(&GradientClipping::None {}), [3.0, -4.0, 12.0]);
        let scaled = clipped(&GradientClipping::GlobalNorm { max_norm: 6.5 });
        for (found, expected) in scaled.iter().zip([1.5, -2.0, 6.0]) {
            assert!((found - expected).abs() < 1e-5, "{scaled:?}");
        }
        let untouched = clipped(&GradientClipping::GlobalNorm { max_norm: 13.1 });
        assert_eq!(untouched, [3.0, -4.0, 12.0]);
    }

    #[test]
    fn each_number_is_cut_off_at_the_value() {
        let cut = clipped(&GradientClipping::Value { max_value: 3.5 });
        assert_eq!(cut, [3.0, -3.5, 3.5]);
    }
}
