// A stand-in for JUnit's annotation, which kotlin.test gives this name.
package kotlin.test

annotation class Test
